"""The same service on stdin and stdout, for smoke tests and scripts: no sockets, no handshake.

A message is a little-endian u32 count of frames; each frame is a little-endian u32 length and its
bytes.
"""

import struct
import threading
from collections.abc import Callable, Iterator
from typing import BinaryIO

from sidecar.errors import RequestMalformed, RequestTooLarge, SidecarError
from sidecar.protocol import MAX_FRAMES, Frame
from sidecar.service import Client, Service

_U32 = struct.Struct("<I")
CLIENT = "stdio"


class Replies:
    """Writes replies, whole, from any thread; calls `on_closed` once nobody reads them."""

    def __init__(self, stdout: BinaryIO, on_closed: Callable[[], None]) -> None:
        self._stdout = stdout
        self._on_closed = on_closed
        self._lock = threading.Lock()

    def deliver(self, _client: Client, frames: list[Frame]) -> None:
        with self._lock:
            try:
                self._stdout.write(_U32.pack(len(frames)))
                for frame in frames:
                    self._stdout.write(_U32.pack(len(frame)))
                    self._stdout.write(frame)
                self._stdout.flush()
            except (OSError, ValueError):
                self._on_closed()


def serve(stdin: BinaryIO, service: Service, max_frame_bytes: int) -> None:
    """Hand over one message after another until the input ends; then let `service` drain."""
    for message in messages(stdin, max_frame_bytes):
        if isinstance(message, SidecarError):
            service.refuse(CLIENT, message)
        else:
            service.handle(CLIENT, message)
    service.drain()


def messages(stdin: BinaryIO, max_frame_bytes: int) -> Iterator[list[Frame] | SidecarError]:
    """Read messages. In place of one that cannot be taken comes the reason; the stream goes on."""
    while count := stdin.read(_U32.size):
        frames: list[Frame] = []
        refusal: SidecarError | None = None
        try:
            for index in range(_u32(count)):
                length = _u32(stdin.read(_U32.size))
                if index >= MAX_FRAMES:
                    refusal = RequestMalformed(f"expected 1 to {MAX_FRAMES} frames; more came.")
                elif length > max_frame_bytes:
                    refusal = RequestTooLarge(
                        f"a frame has {length} bytes; {max_frame_bytes} are allowed."
                    )
                if refusal is None:
                    frames.append(_read(stdin, length))
                else:
                    _skip(stdin, length)
        except EOFError:
            refusal = RequestMalformed("the input ended in the middle of a message.")
        yield refusal or frames


def _u32(data: bytes) -> int:
    if len(data) < _U32.size:
        raise EOFError
    value: int = _U32.unpack(data)[0]
    return value


def _read(stdin: BinaryIO, length: int) -> bytes:
    data = stdin.read(length)
    if len(data) < length:
        raise EOFError
    return data


def _skip(stdin: BinaryIO, length: int) -> None:
    while length > 0:
        length -= len(_read(stdin, min(length, 2**20)))
