"""Log records become JSON lines on stderr, from a thread of its own.

A reader that stalls costs lines, never answers. Records carry ids, codes and times; never pixels,
paths, keys or messages of errors.
"""

import contextlib
import json
import logging
import queue
import threading
import time
import traceback
from typing import TextIO

BACKLOG = 1000  # lines kept for a reader that stalls; more are dropped

_FIELDS = ("request", "op", "code", "queue_ms", "preprocess_ms", "inference_ms", "total_ms")


class StderrHandler(logging.Handler):
    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._lines: queue.Queue[str] = queue.Queue(BACKLOG)
        threading.Thread(target=self._write, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(queue.Full):
            self._lines.put_nowait(_line(record))

    def flush(self, seconds: float = 0.2) -> None:
        """Give the writer a moment, but never wait for a reader that stalls."""
        end = time.monotonic() + seconds
        while self._lines.unfinished_tasks and time.monotonic() < end:
            time.sleep(0.005)

    def _write(self) -> None:
        while True:
            line = self._lines.get()
            with contextlib.suppress(OSError, ValueError):  # closed: no reason to stop
                self._stream.write(line)
                self._stream.flush()
            self._lines.task_done()


def start(stream: TextIO) -> StderrHandler:
    """Send the records of every logger to `stream`."""
    handler = StderrHandler(stream)
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    return handler


def _line(record: logging.LogRecord) -> str:
    content = {"time": round(record.created, 3), "level": record.levelname.lower()}
    content["message"] = record.getMessage()
    content |= {name: getattr(record, name) for name in _FIELDS if hasattr(record, name)}
    if record.exc_info and record.exc_info[0]:
        # Where and what kind, not str(error): a library may put a path or a value into that.
        content["error"] = record.exc_info[0].__name__
        frames = traceback.extract_tb(record.exc_info[2])
        content["at"] = [f"{frame.name}:{frame.lineno}" for frame in frames]
    return json.dumps(content) + "\n"
