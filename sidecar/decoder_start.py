"""How decoder processes come to be: forked from a template on Linux, spawned elsewhere.

The template has everything imported and does nothing, so that a fork takes milliseconds and opens
no file: an update may have replaced ours meanwhile. Windows cannot fork, and macOS' libraries may
not survive it; there, each process starts from the files.
"""

import contextlib
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import BinaryIO, Protocol, cast

from sidecar.decoder_wire import COMMAND, CONTROL, ENDED, FORK, KILL, READY, STARTED

PIPE_BYTES = 2**20  # on Linux; elsewhere the system's own size
START_S = 60.0  # for a template to be ready, or to fork

# All that a process is given of our environment: what the system's loader needs, and no secrets.
ENVIRONMENT = ("SYSTEMROOT", "SYSTEMDRIVE", "WINDIR", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")


class Child(Protocol):
    """A decoder process that has been started."""

    pid: int
    stdin: BinaryIO
    stdout: BinaryIO

    def kill(self) -> None:
        """End it, if it has not ended; from any thread."""

    def wait(self) -> int | None:
        """Its exit code once it has ended, negative for a signal; None where nobody knows."""


class Starter(Protocol):
    def start(self) -> Child:
        """Raises OSError. Call it from one thread, which lives as long as the processes may: on
        Linux they end with it.
        """


def starter() -> Starter:
    """The one that serves this system."""
    return Forking() if sys.platform == "linux" else Spawning()


class Spawning:
    """A new program for each process."""

    def start(self) -> Child:
        return _Spawned()


class _Spawned:
    def __init__(self) -> None:
        self._popen = subprocess.Popen(
            command(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env=environment(),
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),  # Windows'
        )
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        self.stdin = cast(BinaryIO, self._popen.stdin)
        self.stdout = cast(BinaryIO, self._popen.stdout)
        self.pid = self._popen.pid

    def kill(self) -> None:
        self._popen.kill()

    def wait(self) -> int | None:
        return self._popen.wait()


class Forking:
    """One template, and another where it has ended."""

    def __init__(self) -> None:
        self._template: _Template | None = None

    def start(self) -> Child:
        if self._template is None or self._template.ended:
            self._template = _Template()
        return self._template.fork()


class _Template:
    """The process that forks, the socket to it, and the thread that hears of its children."""

    def __init__(self) -> None:
        """Raises OSError."""
        self.ended = False
        self._changed = threading.Condition()
        self._ready = False
        self._started: int | None = None  # the pid that the last fork gave; 0: it failed
        self._codes: dict[int, int] = {}  # by pid
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._popen = subprocess.Popen(
                command(),
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=environment(),
            )
        threading.Thread(target=self._listen, name="decoder template", daemon=True).start()

    def fork(self) -> Child:
        """Raises OSError."""
        import fcntl

        with contextlib.ExitStack() as opened:
            requests, stdin = _pipe(opened)
            stdout, replies = _pipe(opened)
            for end in (stdin, stdout):
                with contextlib.suppress(OSError):  # more than this user may have
                    fcntl.fcntl(end, getattr(fcntl, "F_SETPIPE_SZ", 0), PIPE_BYTES)
            with self._changed:
                self._changed.wait_for(lambda: self._ready or self.ended, START_S)
                self._started = None
                socket.send_fds(self._control, [CONTROL.pack(FORK, 0, 0)], [requests, replies])
                self._changed.wait_for(lambda: self._started is not None or self.ended, START_S)
                if not self._started:
                    raise OSError(0, "its template has ended, or cannot fork")
                child = _Forked(self, self._started, os.dup(stdin), os.dup(stdout))
        return child

    def kill(self, pid: int) -> None:
        """The template does it, which alone knows whether the number is another's by now."""
        with contextlib.suppress(OSError):
            self._control.send(CONTROL.pack(KILL, pid, 0))

    def wait(self, pid: int) -> int | None:
        with self._changed:
            self._changed.wait_for(lambda: pid in self._codes or self.ended)
            return self._codes.pop(pid, None)

    def _listen(self) -> None:
        while message := self._receive():
            kind, pid, code = CONTROL.unpack(message)
            with self._changed:
                if kind == READY:
                    self._ready = True
                elif kind == STARTED:
                    self._started = pid
                elif kind == ENDED:
                    self._codes[pid] = code
                self._changed.notify_all()
        self._popen.kill()
        self._popen.wait()
        with self._changed:
            self.ended = True
            self._changed.notify_all()

    def _receive(self) -> bytes:
        try:
            return self._control.recv(CONTROL.size)
        except OSError:
            return b""


class _Forked:
    def __init__(self, template: _Template, pid: int, stdin: int, stdout: int) -> None:
        self.pid = pid
        self.stdin = cast(BinaryIO, os.fdopen(stdin, "wb", buffering=0))
        self.stdout = cast(BinaryIO, os.fdopen(stdout, "rb", buffering=0))
        self._template = template

    def kill(self) -> None:
        self._template.kill(self.pid)

    def wait(self) -> int | None:
        return self._template.wait(self.pid)


def _pipe(opened: contextlib.ExitStack) -> tuple[int, int]:
    """Both ends are closed with `opened`."""
    ends = os.pipe()
    for end in ends:
        opened.callback(os.close, end)
    return ends


def command() -> list[str]:
    """What starts a decoder process, or a template: the latter finds a socket at its stdin."""
    if getattr(sys, "frozen", False):
        return [sys.executable, COMMAND]
    return [sys.executable, "-P", "-m", "sidecar.decoder_main"]


def environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
    if not getattr(sys, "frozen", False):
        kept["PYTHONPATH"] = os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path)
    # One thread: on a machine of many cores, OpenBLAS's take more address space than a picture.
    return kept | {"OPENBLAS_NUM_THREADS": "1"}
