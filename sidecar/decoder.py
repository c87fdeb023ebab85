"""Pictures in decoder processes of their own: decoded, resized and drawn there, killed on cancel.

The sidecar's side: it starts and kills the processes, and knows nothing of codecs. What the other
side may do and take is in `decoder_main.py`.
"""

import contextlib
import itertools
import json
import logging
import os
import signal
import threading
from collections import deque
from dataclasses import asdict
from typing import Any, Self

import numpy as np

from sidecar import decoder_start
from sidecar.decoder_start import Child
from sidecar.decoder_wire import LENGTHS, MAX_HEADER, MEMORY, SYSTEM_MEMORY, read, write
from sidecar.errors import (
    ImageTooCostly,
    ImageTooLarge,
    ImageUnreadable,
    Internal,
    RequestCancelled,
    ResourcesExhausted,
    SidecarError,
    exhausted,
)
from sidecar.job import FloatArray, HeatmapOptions, ImageFile, Pixels, Rgb

log = logging.getLogger(__name__)

PROCESSES = 2  # one prepares the next picture while the other still holds that of this one
PATIENCE_S = 120.0  # of wall time; where the system can, a process limits its own processor time
START_S = 5.0  # for a process to be started after all, where the last attempt failed
RETRY_S = 1.0  # after a process that could not be started
MAX_REPLY = 2**31  # bytes; more can only come from a decoder that a file has taken over
MAX_MESSAGE = 500  # characters

BROKEN = "a bug in the sidecar; its log says where."
CANCELLED = "the request was cancelled."

_ERRORS = {error.code: error for error in (ImageUnreadable, ImageTooLarge)}

_NUMBERS = itertools.count(1)

Reply = tuple[dict[str, Any], bytearray]


class Decoders:
    """Keeps PROCESSES processes: starts them at once, and another whenever one ends."""

    def __init__(self) -> None:
        self.changed = threading.Condition()  # guards what follows, processes and pictures
        self._processes: list[Process] = []
        self._idle: deque[Process] = deque()
        self._kept: list[Picture] = []  # whose process is idle, and keeps their pixels
        self._missing = PROCESSES
        self._failing = False  # the last process ended before it was ready
        self._started = 0
        self._closed = False
        self._failure: SidecarError | None = None  # why the last process could not be started
        # The one thread that starts processes: on Linux they end with it.
        threading.Thread(target=self._start_missing, name="decoders", daemon=True).start()

    def report(self) -> dict[str, int]:
        """For `stats`: the processes there are, and how many had to be started again."""
        with self.changed:
            restarts = max(0, self._started - PROCESSES)
            return {"processes": len(self._processes), "restarts": restarts}

    def pids(self) -> list[int]:
        """Of the processes there are."""
        with self.changed:
            return [process.pid for process in self._processes]

    def close(self) -> None:
        """End all processes. The end of this process ends them too."""
        with self.changed:
            self._closed = True
            for process in list(self._processes):
                self.replace(process)
            self.changed.notify_all()

    def wait_until_ready(self) -> None:
        """Until all processes have started, and need no more files to do so: an update may replace
        them while the sidecar runs. Raises ResourcesExhausted, Internal.
        """
        with self.changed:
            self.changed.wait_for(
                lambda: self._failure or sum(p.ready for p in self._processes) == PROCESSES,
                PATIENCE_S,
            )
            if self._failure is not None:
                raise self._failure
            if len(self._processes) < PROCESSES:
                raise Internal(BROKEN)

    def take(self, picture: "Picture") -> "Process":
        """A process for `picture`: an idle one, else one that keeps another picture, which will
        have to be decoded again; else the next. With `changed` held. Raises RequestCancelled,
        ResourcesExhausted, Internal.
        """

        def available() -> bool:
            return bool(self._idle or self._kept or picture.cancelled)

        self.changed.wait_for(lambda: available() or self._failure, PATIENCE_S)
        if not self.changed.wait_for(available, START_S):
            raise self._failure or Internal(BROKEN)
        if picture.cancelled:
            raise RequestCancelled(CANCELLED)
        if self._idle:
            return self._idle.popleft()
        process = self._kept.pop().forget()
        assert process is not None
        return process

    def keep(self, picture: "Picture") -> None:
        """Its process is idle, but keeps its pixels. With `changed` held."""
        self._kept.append(picture)
        self.changed.notify_all()

    def use(self, picture: "Picture") -> None:
        """It is worked on, or needs no process any more. With `changed` held."""
        if picture in self._kept:
            self._kept.remove(picture)

    def give_back(self, process: "Process") -> None:
        """With `changed` held."""
        if process in self._processes:
            self._idle.append(process)
            self.changed.notify_all()

    def replace(self, process: "Process") -> None:
        """Kill it, if it has not ended, and start another. With `changed` held."""
        if not process.ended:
            process.kill()
        if process in self._processes:
            self._processes.remove(process)
            if process in self._idle:
                self._idle.remove(process)
            self._missing += 1
            self.changed.notify_all()

    def started(self, process: "Process") -> None:
        """It answers. With `changed` held."""
        process.ready = True
        self._failure = None

    def ended(self, process: "Process") -> None:
        """By itself, or by `replace`. With `changed` held."""
        if process in self._processes and not process.ready:
            self._failure = Internal(BROKEN)
        self.replace(process)

    def _start_missing(self) -> None:
        retry, starter = threading.Event(), decoder_start.starter()
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self._missing)
                if self._closed:
                    return
                failing = self._failure is not None
            if failing:
                retry.wait(RETRY_S)
            try:
                process = Process(self, starter.start())
            except OSError as error:  # no descriptor, process or memory is left, for example
                log.warning("a decoder process cannot be started: %s", error.strerror)
                with self.changed:
                    self._failure = exhausted(error) or Internal(BROKEN)
                    self.changed.notify_all()
                continue
            with self.changed:
                self._started += 1
                self._missing -= 1
                self._processes.append(process)
                self._idle.append(process)
                if self._closed:
                    self.replace(process)
                self.changed.notify_all()
            process.listen()


class Process:
    """One decoder process, and the thread that reads its replies."""

    def __init__(self, decoders: Decoders, child: Child) -> None:
        self.ready = self.ended = False
        self.reply: Reply | None = None
        self._decoders = decoders
        self._writing = threading.Lock()
        self._code: int | None = None  # of its exit
        self._child = child
        self.pid = child.pid

    def listen(self) -> None:
        threading.Thread(target=self._listen, name=f"decoder {self.pid}", daemon=True).start()

    def kill(self) -> None:
        self._child.kill()

    def send(self, request: dict[str, Any], payload: Any) -> None:
        """A process that has ended takes nothing, which its thread finds out too."""
        with self._writing, contextlib.suppress(OSError, ValueError):
            write(self._child.stdin, request, payload)

    def why_ended(self, op: str) -> SidecarError:
        """The reason why it ended by itself during `op`."""
        status = self._code
        if not self.ready:
            log.error("a decoder process ended at its start", extra={"code": str(status)})
            return Internal(BROKEN)
        if os.name == "posix":
            if status == -signal.SIGXCPU:
                return _too_costly("processor time")
            if status in (-signal.SIGKILL, None):  # not by us: the system ran out of memory
                return _out_of_memory()
        log.error("a decoder process crashed", extra={"op": op, "code": str(status)})
        if op == "decode":
            return ImageUnreadable(
                "the decoder crashed at this image file: it is damaged. Open it in a viewer, and "
                "save it again."
            )
        return Internal(BROKEN)

    def _listen(self) -> None:
        try:
            while True:
                header_bytes, payload_bytes = LENGTHS.unpack(read(self._child.stdout, LENGTHS.size))
                if header_bytes > MAX_HEADER or payload_bytes > MAX_REPLY:
                    break
                header = json.loads(read(self._child.stdout, header_bytes))
                reply = (header, read(self._child.stdout, payload_bytes))
                with self._decoders.changed:
                    if self.ready:
                        self.reply = reply
                    else:
                        self._decoders.started(self)
                    self._decoders.changed.notify_all()
                del reply  # megabytes
        except (EOFError, OSError, ValueError, MemoryError):
            pass
        self._child.kill()
        self._code = self._child.wait()
        self._child.stdout.close()
        with self._writing:
            self._child.stdin.close()
        with self._decoders.changed:
            self.ended = True
            self._decoders.ended(self)
            self._decoders.changed.notify_all()


class Picture:
    """One picture, from its file to the heatmap over it; any thread may cancel it. For `with`."""

    def __init__(self, decoders: Decoders, max_pixels: int) -> None:
        self.cancelled = False
        self._decoders = decoders
        self._max_pixels = max_pixels
        self._number = next(_NUMBERS)
        self._process: Process | None = None
        self._prepared: tuple[dict[str, Any], Any] | None = None  # the request, to repeat it

    def prepare(
        self,
        source: ImageFile | Pixels,
        resolution: tuple[int, int],
        resample: str,
        keep: bool,
    ) -> Rgb:
        """Decode and stretch to `resolution`, (height, width); `keep` the picture for `draw`.

        Raises ImageUnreadable, ImageTooLarge, ImageTooCostly, ResourcesExhausted,
        RequestCancelled.
        """
        request: dict[str, Any] = {"resolution": resolution, "resample": resample}
        request["keep"] = self._number if keep else None
        if isinstance(source, ImageFile):
            request |= {"op": "decode", "max_pixels": self._max_pixels}
            payload: Any = source.data
        else:
            request |= {"op": "resize", "shape": source.rgb.shape[:2]}
            payload = np.ascontiguousarray(source.rgb)
        if keep:
            self._prepared = request, payload
        _, pixels = self._ask(request, payload, keep)
        height, width = resolution
        if len(pixels) != height * width * 3:
            raise Internal(BROKEN)
        return np.frombuffer(pixels, np.uint8).reshape(height, width, 3)

    def draw(
        self,
        scores: FloatArray,
        size: tuple[int, int],
        options: HeatmapOptions,
        norms: tuple[float, float],
        flat: bool,
    ) -> bytearray:
        """A PNG file: 256 row-major scores over the picture that was kept, else over white of
        `size`; the rest as `heatmap.draw` takes it.

        Raises ImageTooCostly, ResourcesExhausted, RequestCancelled.
        """
        request = {
            "op": "draw",
            "over": self._number if self._prepared else None,
            "size": size,
            "heatmap": asdict(options),
            "norms": norms,
            "flat": flat,
        }
        payload = np.ascontiguousarray(scores, "<f4")
        while True:
            try:
                return self._ask(request, payload, keep=False, kept=self._prepared is not None)[1]
            except _Forgotten:
                assert self._prepared is not None
                self._ask(*self._prepared, keep=True)

    def cancel(self) -> None:
        """End whatever is done with it, at once; `prepare` and `draw` raise RequestCancelled."""
        with self._decoders.changed:
            self.cancelled = True
            process = self.forget()
            if process is not None:
                self._decoders.replace(process)
            self._decoders.changed.notify_all()

    def close(self) -> None:
        """Let the process go, if it still keeps the pixels. May be called again."""
        with self._decoders.changed:
            process = self.forget()
            if process is not None:
                self._decoders.give_back(process)

    def forget(self) -> "Process | None":
        """The process, which is no longer this picture's. With `changed` held."""
        self._decoders.use(self)
        process, self._process = self._process, None
        return process

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, request: dict[str, Any], payload: Any, keep: bool, kept: bool = False) -> Reply:
        """`kept`: only a process that keeps the pixels can answer; raises _Forgotten if none."""
        changed = self._decoders.changed
        with changed:
            if self.cancelled:
                raise RequestCancelled(CANCELLED)
            self._decoders.use(self)
            if self._process is None or self._process.ended:
                if kept:
                    raise _Forgotten
                self._process = self._decoders.take(self)
            process = self._process
            process.reply = None
        process.send(request, payload)
        with changed:
            answered = changed.wait_for(
                lambda: process.reply or process.ended or self.cancelled, PATIENCE_S
            )
            reply, process.reply = process.reply, None
            if self.cancelled:
                raise RequestCancelled(CANCELLED)
            if not answered:
                self._decoders.replace(process)
            if reply is not None and keep and "error" not in reply[0]:
                self._decoders.keep(self)
            else:
                self.close()
        if not answered:
            raise _too_costly("time")
        if reply is None:
            raise process.why_ended(request["op"])
        if "error" in reply[0]:
            raise _error(reply[0])
        return reply


class _Forgotten(Exception):
    """The process that kept the pixels has ended, or was needed for another picture."""


def _error(header: dict[str, Any]) -> SidecarError:
    code, message = str(header["error"]), str(header.get("message", ""))[:MAX_MESSAGE]
    if code == MEMORY:
        return _too_costly("memory")
    if code == SYSTEM_MEMORY:
        return _out_of_memory()
    if code in _ERRORS:
        return _ERRORS[code](message)
    log.error("a decoder process failed: %s", message)
    return Internal(BROKEN)


def _too_costly(what: str) -> ImageTooCostly:
    return ImageTooCostly(
        f"the image takes more {what} to decode or draw than one of its size may. Save it again "
        "with ordinary settings, or scale it down first."
    )


def _out_of_memory() -> ResourcesExhausted:
    return ResourcesExhausted(
        "the system has not enough free memory to decode or draw this image. Close other programs "
        "and try again, or scale it down first."
    )
