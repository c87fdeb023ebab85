"""The safetensors format by its header alone: where each tensor's bytes lie, never what they mean.

A file is a little-endian u64 length, that many bytes of JSON, then the tensors' bytes. With the
header one tensor can be fetched or copied without touching the others.
https://github.com/huggingface/safetensors#format
"""

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from build.errors import BuildError

PREFIX = 8  # bytes of the header's length
LONGEST = 100_000_000  # the format's own limit on a header
CHUNK = 1 << 22  # bytes held in memory at once; a multiple of every type's width
FLOATS = {"F16": 2, "BF16": 2, "F32": 4}  # the types that a checkpoint's weights come in: bytes


@dataclass(frozen=True, slots=True)
class Tensor:
    """Where one tensor lies; `start` and `stop` count from the beginning of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start


def header_size(prefix: bytes, file: str) -> int:
    """Where the tensors' bytes begin, as the first PREFIX bytes tell. Raises BuildError."""
    if len(prefix) < PREFIX:
        raise corrupt(file, f"it has {len(prefix)} bytes")
    (length,) = struct.unpack("<Q", prefix)
    if not 2 <= length <= LONGEST:
        raise corrupt(file, f"its header claims to be {length} bytes long")
    return PREFIX + int(length)


def parse(text: bytes, size: int | None, file: str) -> dict[str, Tensor]:
    """Read the JSON part of the header of a file of `size` bytes, if known. Raises BuildError."""
    try:
        content = json.loads(text)
        content.pop("__metadata__", None)
        base = PREFIX + len(text)
        found = {str(name): _tensor(entry, base) for name, entry in content.items()}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise corrupt(file, "its header is not that of a safetensors file") from error
    end = max((tensor.stop for tensor in found.values()), default=base)
    if size not in (end, None):
        raise corrupt(file, f"its header promises {end} bytes, it has {size}")
    for name, tensor in found.items():
        width = FLOATS.get(tensor.dtype)
        if width is not None and tensor.size != width * prod(tensor.shape):
            raise corrupt(file, f"{name} does not have the size that its shape gives")
    return found


def read_header(path: Path) -> dict[str, Tensor]:
    """Read the header of a file on disk and nothing else of it. Raises BuildError."""
    with path.open("rb") as stream:
        base = header_size(stream.read(PREFIX), named(path))
        text = stream.read(base - PREFIX)
    size = path.stat().st_size
    if base > size:
        raise corrupt(named(path), f"it ends inside its header, after {size} bytes")
    return parse(text, size, named(path))


def read(path: Path, start: int, stop: int) -> Iterator[bytes]:
    """The bytes from `start` to `stop`, at most CHUNK of them at once. Raises BuildError."""
    with path.open("rb") as stream:
        stream.seek(start)
        while start < stop:
            chunk = stream.read(min(CHUNK, stop - start))
            if not chunk:
                raise corrupt(named(path), f"it ends after {start} bytes")
            start += len(chunk)
            yield chunk


def header(tensors: Mapping[str, Tensor]) -> bytes:
    """The first bytes of a new file in which the tensors' bytes follow in the mapping's order."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in tensors.items():
        span = (offset, offset + tensor.size)
        entries[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": span}
        offset += tensor.size
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors' bytes are aligned
    return struct.pack("<Q", len(text)) + text


def named(path: Path) -> str:
    """The file as people know it, and where its bytes are: the hub's cache holds links to them."""
    return f"{path.name} at {path.resolve()}"


def corrupt(file: str, what: str) -> BuildError:
    """The error for a file whose bytes contradict each other."""
    return BuildError(
        f"{file} is cut short or corrupt: {what}. Delete it, and download or copy it again."
    )


def _tensor(entry: object, base: int) -> Tensor:
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(start), int(stop)]}:
            sizes = tuple(size for size in shape if isinstance(size, int) and size >= 0)
            if len(sizes) == len(shape) and 0 <= start <= stop:
                return Tensor(dtype, sizes, base + start, base + stop)
    raise ValueError("not a tensor's entry")
