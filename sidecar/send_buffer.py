"""The send buffer of one peer: replies that it has not taken yet, bounded in bytes. No sockets.

A reply that the transport has taken counts until the transport has let go of its memory.
"""

from collections import deque
from collections.abc import Callable

from sidecar.protocol import Frame

MAX_BYTES = 128 * 2**20  # 1.5 full queues of the largest replies that a MedGemma gives
OVERHEAD = 1024  # bytes that a reply costs beside its frames


class SendBuffer:
    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._waiting: deque[list[Frame]] = deque()
        self._sent: deque[tuple[int, Callable[[], bool]]] = deque()
        self.bytes = 0

    def __len__(self) -> int:
        """The number of replies that were not handed to the transport yet."""
        return len(self._waiting)

    @property
    def empty(self) -> bool:
        """True if nothing waits, and the transport holds nothing."""
        self._forget_released()
        return not self._waiting and not self._sent

    def put(self, frames: list[Frame]) -> bool:
        """Append a reply; False if there is no room. One reply always fits, whatever its size."""
        self._forget_released()
        size = _size(frames)
        if self.bytes and self.bytes + size > self._max_bytes:
            return False
        self._waiting.append(frames)
        self.bytes += size
        return True

    def first(self) -> list[Frame]:
        """The reply to hand to the transport next."""
        return self._waiting[0]

    def sent(self, released: Callable[[], bool]) -> None:
        """The transport has taken the first reply; its memory is free once `released` says so."""
        self._sent.append((_size(self._waiting.popleft()), released))

    def _forget_released(self) -> None:
        while self._sent and self._sent[0][1]():
            self.bytes -= self._sent.popleft()[0]


def _size(frames: list[Frame]) -> int:
    return OVERHEAD + sum(len(frame) for frame in frames)
