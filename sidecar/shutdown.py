"""Waits for the shutdown, and says why it came: a signal, a request, or a failure.

A signal handler of Python's runs only once the main thread comes back from C; one that arrives
just before that thread blocks would wait with it. The interpreter's own handler writes to a socket
instead, which the main thread reads.
"""

import contextlib
import signal
import socket
from queue import Empty, SimpleQueue

from sidecar.errors import SidecarError


class Shutdown:
    """Made in the main thread, which alone may `wait`."""

    def __init__(self) -> None:
        self._reasons: SimpleQueue[SidecarError | None] = SimpleQueue()
        self._wake_out, self._wake_in = socket.socketpair()
        self._wake_in.setblocking(False)

    def request(self, reason: SidecarError | None = None) -> None:
        """End the wait; from any thread. The first reason counts."""
        self._reasons.put(reason)
        with contextlib.suppress(BlockingIOError):  # many wake-ups wait already
            self._wake_in.send(b"\0")

    def on_signals(self) -> None:
        """From now on SIGTERM and SIGINT end the wait."""
        signal.set_wakeup_fd(self._wake_in.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)

    def wait(self) -> SidecarError | None:
        """Return the failure, or None where the shutdown was asked for."""
        self._wake_out.recv(1)
        try:
            return self._reasons.get_nowait()
        except Empty:  # a signal
            return None
