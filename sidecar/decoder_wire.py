"""The messages between the sidecar and its decoder processes: framing, no pictures, no processes.

A message is the lengths of its header and of its payload, the header as JSON, and the payload.
JSON, since a decoder that a file has taken over must not be able to run code in the sidecar.
"""

import json
import struct
from typing import Any, BinaryIO

COMMAND = "decode"  # of the frozen program, for us alone; see packaging/entry.py

LENGTHS = struct.Struct("<IQ")
MAX_HEADER = 64 * 1024  # bytes

# Between the sidecar and the template that forks decoders (Linux): a kind, a pid and an exit code.
# FORK comes with two descriptors, to read requests from and to write replies to.
CONTROL = struct.Struct("<cii")
READY, FORK, STARTED, KILL, ENDED = b"R", b"F", b"S", b"K", b"E"

# Errors that only the two sides know, beside the codes of `errors.py`.
MEMORY = "memory"  # more than the picture's allowance
SYSTEM_MEMORY = "system_memory"  # the system has less than the allowance
BUG = "bug"


def read(stream: BinaryIO, length: int) -> bytearray:
    """Raises EOFError."""
    data = bytearray(length)
    view = memoryview(data)
    while view:
        count = stream.readinto(view)  # type: ignore[attr-defined]
        if not count:
            raise EOFError
        view = view[count:]
    return data


def write(stream: BinaryIO, header: dict[str, Any], payload: Any) -> None:
    """`payload` is anything with a contiguous buffer. Raises OSError."""
    text = json.dumps(header).encode()
    view = memoryview(payload).cast("B")
    _write_all(stream, memoryview(LENGTHS.pack(len(text), view.nbytes) + text))
    _write_all(stream, view)


def _write_all(stream: BinaryIO, view: memoryview) -> None:
    while view:
        view = view[stream.write(view) :]  # a pipe takes what it has room for
