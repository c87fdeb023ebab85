"""The send buffer of one peer: replies that it has not taken yet, bounded in bytes. No sockets."""

from collections import deque

from sidecar.protocol import Frame

MAX_BYTES = 128 * 2**20  # 1.5 full queues of the largest replies that a MedGemma gives
OVERHEAD = 1024  # bytes that a reply costs beside its frames


class SendBuffer:
    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._replies: deque[list[Frame]] = deque()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._replies)

    def put(self, frames: list[Frame]) -> bool:
        """Append a reply; False if there is no room. One reply always fits, whatever its size."""
        size = _size(frames)
        if self._replies and self.bytes + size > self._max_bytes:
            return False
        self._replies.append(frames)
        self.bytes += size
        return True

    def first(self) -> list[Frame]:
        return self._replies[0]

    def drop_first(self) -> None:
        self.bytes -= _size(self._replies.popleft())


def _size(frames: list[Frame]) -> int:
    return OVERHEAD + sum(len(frame) for frame in frames)
