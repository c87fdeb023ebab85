"""The safetensors format by its header alone: where each tensor's bytes lie, never what they mean.

A file is a little-endian u64 length, that many bytes of JSON, then the tensors' bytes. Reading the
header is enough to fetch or copy one tensor without touching the others.
https://github.com/huggingface/safetensors#format
"""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import BinaryIO

from build.errors import BuildError

PREFIX = 8  # bytes of the header's length
LONGEST = 100_000_000  # the format's own limit on a header
BITS = {
    **{"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "BOOL": 8},
    **{"I8": 8, "U8": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32},
    **{"F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64},
}


@dataclass(frozen=True, slots=True)
class Tensor:
    """`start` and `stop` count from the beginning of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start


def header_length(prefix: bytes, file: str) -> int:
    """The number of JSON bytes behind the first eight. Raises BuildError."""
    if len(prefix) < PREFIX:
        raise BuildError(_corrupt(file, f"it has {len(prefix)} bytes"))
    (length,) = struct.unpack("<Q", prefix[:PREFIX])
    if not 2 <= length <= LONGEST:
        raise BuildError(_corrupt(file, f"its header claims {length} bytes"))
    return int(length)


def parse(text: bytes, file: str) -> dict[str, Tensor]:
    """Read the JSON part; `file` is the name that errors carry. Raises BuildError."""
    try:
        content = json.loads(text)
        content.pop("__metadata__", None)
        found = {str(name): _tensor(entry, PREFIX + len(text)) for name, entry in content.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BuildError(_corrupt(file, "its header is not that of a safetensors file")) from error
    for name, tensor in found.items():
        bits = BITS.get(tensor.dtype)
        if bits is not None and tensor.size * 8 != bits * prod(tensor.shape):
            raise BuildError(_corrupt(file, f"{name} has a size that its shape does not give"))
    return found


def header(tensors: Mapping[str, Tensor]) -> tuple[bytes, list[str]]:
    """The first bytes of a new file with `tensors`, and the order in which their bytes follow.

    Widest type first, then by name, as the safetensors library does, so that every tensor is
    aligned; the header is padded with spaces to a multiple of 8.
    """
    order = sorted(tensors, key=lambda name: (-BITS[tensors[name].dtype], name))
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in order:
        tensor = tensors[name]
        end = offset + tensor.size
        entries[name] = {
            "dtype": tensor.dtype,
            "shape": tensor.shape,
            "data_offsets": (offset, end),
        }
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, order


def read_header(stream: BinaryIO, size: int, file: str) -> dict[str, Tensor]:
    """Parse the header of an open file of `size` bytes. Raises BuildError."""
    length = header_length(stream.read(PREFIX), file)
    text = stream.read(length)
    if len(text) < length:
        raise BuildError(_corrupt(file, f"it ends inside its header, after {size} bytes"))
    found = parse(text, file)
    check_end(found, size, file)
    return found


def check_end(tensors: Mapping[str, Tensor], size: int, file: str) -> None:
    """Compare the file's size with what its header promises. Raises BuildError."""
    end = max((tensor.stop for tensor in tensors.values()), default=0)
    if end > size:
        raise BuildError(_corrupt(file, f"it has {size} bytes of the {end} that its header names"))


def _tensor(entry: Mapping[str, object], base: int) -> Tensor:
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(start), int(stop)]}:
            sizes = tuple(size for size in shape if isinstance(size, int) and size >= 0)
            if len(sizes) == len(shape) and 0 <= start <= stop:
                return Tensor(dtype, sizes, base + start, base + stop)
    raise ValueError("not a tensor's entry")


def _corrupt(file: str, what: str) -> str:
    return f"{file} is cut short or corrupt: {what}. Download or copy it again."
