"""Waits for the end, and tells why it came: a signal, a shutdown, or a failure.

A signal handler of Python's runs only once the main thread comes back from C; one that arrives
just before that thread blocks would wait with it. The interpreter's own handler writes to a socket
instead, which the main thread reads.
"""

import contextlib
import signal
import socket
from queue import Empty, SimpleQueue

from sidecar.errors import SidecarError


class Ending:
    """Made in the main thread, which alone may `wait`; from then on signals end the wait."""

    def __init__(self) -> None:
        self._reasons: SimpleQueue[SidecarError | None] = SimpleQueue()
        self._ear, self._bell = socket.socketpair()
        self._bell.setblocking(False)

    def come(self, reason: SidecarError | None = None) -> None:
        """End the wait; from any thread. The first reason counts."""
        self._reasons.put(reason)
        with contextlib.suppress(BlockingIOError):  # rung often enough
            self._bell.send(b"\0")

    def on_signals(self) -> None:
        signal.set_wakeup_fd(self._bell.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)

    def wait(self) -> SidecarError | None:
        """The reason, or None where the end was asked for."""
        self._ear.recv(1)
        try:
            return self._reasons.get_nowait()
        except Empty:  # a signal
            return None
