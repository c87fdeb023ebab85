"""Vectors in 8 or 16 bits with one scale each: numpy arrays in and out, nothing else."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Codes = NDArray[np.int8] | NDArray[np.int16]

LARGEST = 127


def quantise(vectors: Floats, kind: str = "int8") -> tuple[Floats, Codes]:
    """[..., d] to scales [...] and codes [..., d]; a vector is `scale * codes`. No scale is 0.

    `kind` is int8 or int16.
    """
    limit = int(np.iinfo(kind).max)
    largest = np.abs(vectors).max(axis=-1)
    scales = np.where(largest > 0, largest / limit, 1).astype(np.float32)
    codes: Codes = np.rint(vectors / scales[..., None]).clip(-limit, limit).astype(kind)
    return scales, codes


def pack(vectors: Floats) -> bytes:
    """[n, d] as n records of a float16 scale and d codes."""
    scales, codes = quantise(vectors)
    # The codes are those of the scale as it is stored, not of the one before rounding.
    stored = np.maximum(scales.astype(np.float16), np.finfo(np.float16).smallest_subnormal)
    codes = np.rint(vectors / stored[:, None].astype(np.float32))
    records = np.zeros(len(vectors), _record(vectors.shape[1]))
    records["scale"], records["codes"] = stored, codes.clip(-LARGEST, LARGEST)
    return records.tobytes()


def unpack(data: bytes, dims: int) -> Floats:
    """What `pack` wrote, as [n, dims]."""
    records = np.frombuffer(data, _record(dims))
    vectors: Floats = records["scale"].astype(np.float32)[:, None] * records["codes"]
    return vectors


def packed_size(count: int, dims: int) -> int:
    """Bytes of `count` vectors."""
    return count * _record(dims).itemsize


def _record(dims: int) -> np.dtype[np.void]:
    return np.dtype([("scale", "<f2"), ("codes", "i1", dims)])
