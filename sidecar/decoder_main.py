"""The decoder process: encoded pictures come in, pixels and heatmaps go out, over stdin and stdout.

Runs what a hostile file can exploit or exhaust, apart from everything worth having: no keys, no
model, no other request's data, no files, bounded memory and time. The parent (`decoder.py`) kills
it where a request is cancelled, so nothing here has to be interruptible.
"""

import contextlib
import gc
import json
import os
import select
import signal
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from sidecar import hardening, heatmap, images
from sidecar.decoder_wire import (
    BUG,
    CONTROL,
    ENDED,
    FORK,
    KILL,
    LENGTHS,
    MEMORY,
    READY,
    STARTED,
    SYSTEM_MEMORY,
    read,
    write,
)
from sidecar.errors import ImageUnreadable, ResourcesExhausted, SidecarError
from sidecar.job import HeatmapOptions, Rgb

# What a picture may take; `python -m bench.decoder` measures what ordinary ones do. The worst, WebP
# with alpha, takes 18 bytes a pixel; none a fifth of the time, on a fast machine.
SECONDS = 5  # of processor time, for a picture of any size
SECONDS_PER_MEGAPIXEL = 0.25
BYTES = 256 * 2**20
BYTES_PER_PIXEL = 24
COPIES = 3  # of the file

PR_SET_PDEATHSIG = 1  # Linux's <sys/prctl.h>
OOM_SCORE = "1000"  # of 1000: where Linux runs out of memory, this process ends before others


@dataclass(frozen=True, slots=True)
class Confinement:
    """The limits of this process; those of the picture at hand are set within them."""

    address_space: int | None  # bytes once everything is imported; None: cannot be limited
    most: int  # bytes of address space that the system allows at all

    def allow(self, pixels: int, file_bytes: int) -> bool:
        """Allow what one picture may take. False: the system itself allows less memory."""
        if sys.platform == "win32":
            return True
        import resource

        seconds = SECONDS + SECONDS_PER_MEGAPIXEL * pixels / 1e6
        until = ceil(time.process_time() + seconds)
        most_seconds = resource.getrlimit(resource.RLIMIT_CPU)[1]
        if most_seconds != resource.RLIM_INFINITY:
            until = min(until, most_seconds)
        resource.setrlimit(resource.RLIMIT_CPU, (until, most_seconds))
        if self.address_space is None:
            return True
        wanted = self.address_space + BYTES + COPIES * file_bytes + BYTES_PER_PIXEL * pixels
        allowed = min(wanted, self.most)
        resource.setrlimit(resource.RLIMIT_AS, (allowed, self.most))
        return allowed == wanted


def confine() -> Confinement:
    """Give up for good what decoding does not need. Call once everything is imported."""
    if sys.platform == "win32":
        return Confinement(None, 0)
    import resource

    address_space = None
    most = resource.RLIM_INFINITY
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
        address_space = pages * resource.getpagesize()
        most = resource.getrlimit(resource.RLIMIT_AS)[1]
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text(OOM_SCORE)
    none = (0, 0)
    for name in ("RLIMIT_FSIZE", "RLIMIT_NPROC", "RLIMIT_NOFILE"):
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(getattr(resource, name), none)
    if most == resource.RLIM_INFINITY:
        most = sys.maxsize
    return Confinement(address_space, most)


def _trim() -> Callable[[], object]:
    """Gives freed memory back to the system, which glibc does not do by itself."""
    if sys.platform == "linux":
        import ctypes

        with contextlib.suppress(AttributeError):  # another C library
            trim = ctypes.CDLL(None).malloc_trim
            return lambda: trim(0)
    return lambda: None


def _end_with_parent() -> None:
    """On Linux even while decoding; elsewhere at the next end of file.

    The signal comes when the thread that started this process ends: the template's only one, and
    for the template itself one that lives as long as the sidecar.
    """
    if sys.platform != "linux":
        return
    import ctypes

    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


class Desk:
    """Answers one request after another, and keeps the picture that is to be drawn over."""

    def __init__(self, confinement: Confinement) -> None:
        self._confinement = confinement
        self._kept: Rgb | None = None
        self._number: int | None = None  # of the picture that is kept
        self._whole = True  # the allowance is ours, not the system's

    def expect(self, payload_bytes: int) -> None:
        """Make room for a payload before it is read."""
        pixels = 0 if self._kept is None else self._kept.shape[0] * self._kept.shape[1]
        self._allow(pixels, payload_bytes)

    def answer(self, request: dict[str, Any], payload: bytearray) -> tuple[dict[str, Any], Any]:
        """The header and the payload of the reply."""
        try:
            if request["op"] == "draw":
                return self._draw(request, payload)
            return self._prepare(request, payload)
        except (MemoryError, ResourcesExhausted):
            self._kept = None
            return {"error": MEMORY if self._whole else SYSTEM_MEMORY}, b""
        except SidecarError as error:
            # A codec that is out of memory says no more than that it failed.
            if isinstance(error, ImageUnreadable) and not self._whole:
                return {"error": SYSTEM_MEMORY}, b""
            return {"error": error.code, "message": str(error)}, b""
        except Exception as error:
            return {"error": BUG, "message": _where(error)}, b""

    def _prepare(self, request: dict[str, Any], payload: bytearray) -> tuple[dict[str, Any], Any]:
        self._kept = None
        self._allow(0, len(payload))
        if request["op"] == "decode":
            rgb = images.decode(
                memoryview(payload),
                request["max_pixels"],
                lambda pixels: self._allow(pixels, len(payload)),
            )
        else:
            height, width = request["shape"]
            self._allow(height * width, len(payload))
            rgb = np.frombuffer(payload, np.uint8).reshape(height, width, 3)
        height, width = request["resolution"]
        resized = images.resize(rgb, height, width, request["resample"])
        if request["keep"] is not None:
            self._kept, self._number = rgb, request["keep"]
        return {}, np.ascontiguousarray(resized).reshape(-1).data

    def _draw(self, request: dict[str, Any], payload: bytearray) -> tuple[dict[str, Any], Any]:
        picture, self._kept = self._kept, None
        if request["over"] is None:
            height, width = request["size"]
            picture = np.full((height, width, 3), 255, np.uint8)
        elif picture is None or request["over"] != self._number:
            raise LookupError
        height, width = picture.shape[:2]
        self._allow(height * width, 0)
        scores = np.frombuffer(payload, np.float32)
        options = HeatmapOptions.parse(request["heatmap"])
        return {}, heatmap.draw(scores, picture, options, request["norms"], request["flat"])

    def _allow(self, pixels: int, file_bytes: int) -> None:
        self._whole = self._confinement.allow(pixels, file_bytes)


def _where(error: Exception) -> str:
    """The type of an exception and the line it came from; no message, which may quote the file."""
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    place = "" if at is None else f" at {at.tb_frame.f_code.co_filename}:{at.tb_lineno}"
    return f"{type(error).__name__}{place}"


def main() -> NoReturn:
    """Decode what comes on stdin; or, where stdin is a socket, be the template that forks."""
    # What is sent to all processes of a group is the parent's to answer; it ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    hardening.forbid_core_dumps()
    stdin, stdout = os.dup(0), os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(nowhere, number)
    os.close(nowhere)
    if stat.S_ISSOCK(os.fstat(stdin).st_mode):
        os.close(stdout)
        serve_forks(socket.socket(fileno=stdin))
    decode(stdin, stdout)


def decode(requests_fd: int, replies_fd: int) -> NoReturn:
    """Answer requests until the parent has gone."""
    requests = os.fdopen(requests_fd, "rb", buffering=0)
    replies = os.fdopen(replies_fd, "wb", buffering=0)
    trim = _trim()
    desk = Desk(confine())
    with contextlib.suppress(EOFError, OSError):
        write(replies, {"ready": True}, b"")
        while True:
            lengths = LENGTHS.unpack(read(requests, LENGTHS.size))
            request = json.loads(read(requests, lengths[0]))
            desk.expect(lengths[1])
            try:
                payload = read(requests, lengths[1])
            except MemoryError:
                write(replies, {"error": SYSTEM_MEMORY}, b"")
                break  # it would have to be read to get to what follows
            header, reply = desk.answer(request, payload)
            del payload
            write(replies, header, reply)
            del reply
            trim()
    os._exit(0)


def serve_forks(control: socket.socket) -> NoReturn:
    """Fork a decoder process at each request, kill one on request, and tell of each that ended."""
    _end_with_parent()
    gc.collect()
    gc.freeze()  # a collection would write to pages that the processes share
    woken, wake = socket.socketpair()
    wake.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake.fileno())
    running: set[int] = set()
    with contextlib.suppress(OSError):
        control.send(CONTROL.pack(READY, 0, 0))
        while True:
            ready = select.select([control, woken], [], [])[0]
            if woken in ready:
                woken.recv(4096)
            for pid, code in _ended(running):
                control.send(CONTROL.pack(ENDED, pid, code))
            if control not in ready:
                continue
            message, descriptors, _, _ = socket.recv_fds(control, CONTROL.size, 2)
            if not message:
                break  # the sidecar has gone
            kind, pid, _ = CONTROL.unpack(message)
            if kind == KILL and pid in running:
                os.kill(pid, signal.SIGKILL)
            elif kind == FORK:
                pid = _fork(descriptors, (control, woken, wake))
                running |= {pid} - {0}
                control.send(CONTROL.pack(STARTED, pid, 0))
    os._exit(0)


def _fork(descriptors: list[int], ours: tuple[socket.socket, ...]) -> int:
    """The pid of a new decoder process; 0 where the system allows none."""
    template = os.getpid()
    try:
        pid = os.fork()
    except OSError:
        pid = 0
    else:
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for end in ours:
                end.close()
            _end_with_parent()
            if os.getppid() != template:
                os._exit(0)  # it has ended before we could ask for the signal
            decode(*descriptors)
    for descriptor in descriptors:
        os.close(descriptor)
    return pid


def _ended(running: set[int]) -> Iterator[tuple[int, int]]:
    """The pids that have ended since, and their exit codes."""
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        running.discard(pid)
        yield pid, os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    main()
