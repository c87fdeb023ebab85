"""Log records become JSON lines on stderr, from a thread of its own.

A reader that stalls costs lines, never answers. Records carry ids, codes and times; never pixels,
paths, keys or messages of errors.
"""

import contextlib
import json
import logging
import os
import queue
import select
import threading
import time
import traceback
import warnings

STDERR = 2
BACKLOG = 1000  # lines kept for a reader that stalls; more are dropped
STALLED_S = 0.2  # without room for a line, after which `flush` gives up
FLUSH_S = 1.0  # at most, on a machine that is too busy to write them

_FIELDS = ("request", "op", "code", "queue_ms", "preprocess_ms", "inference_ms", "total_ms")


class StderrHandler(logging.Handler):
    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._lines: queue.Queue[bytes] = queue.Queue(BACKLOG)
        self._writer = threading.Thread(target=self._write, name="log", daemon=True)
        self._writer.start()

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(queue.Full):
            self._lines.put_nowait(_line(record))

    def flush(self) -> None:
        """Wait until every line is written, but not for a reader that stalls or has gone."""
        begun = read = time.monotonic()
        while self._lines.unfinished_tasks and self._writer.is_alive():
            now = time.monotonic()
            if _takes_more(self._descriptor):
                read = now
            if now - read > STALLED_S or now - begun > FLUSH_S:
                return
            time.sleep(0.002)

    def _write(self) -> None:
        while True:
            line = self._lines.get()
            with contextlib.suppress(OSError):  # closed: no reason to stop
                while line:
                    line = line[os.write(self._descriptor, line) :]
            self._lines.task_done()


def start(descriptor: int = STDERR) -> StderrHandler:
    """Send our own records to `descriptor`. Other people's may hold paths, and go nowhere."""
    handler = StderrHandler(descriptor)
    ours = logging.getLogger("sidecar")
    ours.handlers = [handler]
    ours.setLevel(logging.INFO)
    ours.propagate = False
    logging.getLogger().handlers = [logging.NullHandler()]
    warnings.simplefilter("ignore")  # Pillow warns of odd files, in words that may quote them
    threading.excepthook = _note_failure
    return handler


def _takes_more(descriptor: int) -> bool:
    """False where a write would block or fail; also where the system cannot tell (Windows)."""
    if os.name == "nt":
        return False
    poll = select.poll()
    try:
        poll.register(descriptor, select.POLLOUT)
        return any(event == select.POLLOUT for _, event in poll.poll(0))
    except OSError:
        return False


def _note_failure(failure: threading.ExceptHookArgs) -> None:
    if failure.exc_value is not None:
        logging.getLogger("sidecar").error("a thread failed", exc_info=failure.exc_value)


def _line(record: logging.LogRecord) -> bytes:
    content = {"time": round(record.created, 3), "level": record.levelname.lower()}
    content["message"] = record.getMessage()
    content |= {name: getattr(record, name) for name in _FIELDS if hasattr(record, name)}
    if record.exc_info and record.exc_info[0]:
        # Where and what kind, not str(error): a library may put a path or a value into that.
        content["error"] = record.exc_info[0].__name__
        frames = traceback.extract_tb(record.exc_info[2])
        content["at"] = [f"{frame.name}:{frame.lineno}" for frame in frames]
    return json.dumps(content).encode() + b"\n"
