"""Frames in, messages out: no sockets, no clocks, no model, no images.

A message is [header: msgpack map] [payload: raw bytes]*. The header is small and typed; pixels and
floats stay outside it, so nothing large is ever copied. It imports numpy, since the payloads are
arrays, and no engine, image library or socket. Twin of electron_bridge/src/protocol.ts;
tests/golden holds both to the same bytes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any, TypeGuard

import msgpack
import numpy as np
from numpy.typing import NDArray

from sidecar import case
from sidecar.case import check_id, metadata_text
from sidecar.errors import (
    ProtocolVersion,
    RequestMalformed,
    RequestTooLarge,
    RequestUnsupported,
    SidecarError,
)
from sidecar.job import (
    HEATMAP_PNG,
    OUTPUTS,
    Embeddings,
    HeatmapOptions,
    ImageFile,
    Input,
    Job,
    Pixels,
    Tensor,
)

VERSION = 1
MAX_HEADER = 2 * case.MAX_METADATA_BYTES  # bytes: metadata are part of it
MAX_FRAMES = 8
MAX_DEPTH = 2 + case.MAX_DEPTH  # the header, its params, and metadata in them
MAX_RANK = 8  # of an array
MAX_K = 1000  # matches of a search
MAX_PATH = 4096  # characters
MAX_ID = 2**32 - 1

DTYPES: dict[str, np.dtype[Any]] = {"FP32": np.dtype("<f4"), "UINT8": np.dtype("u1")}
DATATYPES = {dtype: name for name, dtype in DTYPES.items()}

CASE_OUTPUTS = ("pooled_embedding", "projected_embeddings")  # what a case is made of

Frame = bytes | memoryview


@dataclass(frozen=True, slots=True)
class Hello:
    id: int
    op = "hello"


@dataclass(frozen=True, slots=True)
class Encode:
    id: int
    job: Job
    bytes: int  # of all payloads
    low: bool = False  # of low priority: waits while another request waits
    op = "encode"


@dataclass(frozen=True, slots=True)
class Cancel:
    id: int
    target: int
    op = "cancel"


@dataclass(frozen=True, slots=True)
class Stats:
    id: int
    op = "stats"


@dataclass(frozen=True, slots=True)
class Shutdown:
    id: int
    op = "shutdown"


@dataclass(frozen=True, slots=True)
class CollectionAdd:
    """Either `job` or `embeddings`. The job's outputs are `outputs`, and what a case is made of."""

    id: int
    collection: Path
    case: str
    metadata: str  # a JSON object
    replace: bool
    outputs: tuple[str, ...]
    job: Job | None
    embeddings: Embeddings | None
    bytes: int
    low: bool = False
    op = "collection.add"


@dataclass(frozen=True, slots=True)
class CollectionSearch:
    """Either `job` or `embeddings`, as for CollectionAdd."""

    id: int
    collection: Path
    k: int
    regions: bool
    where: Mapping[str, Any]
    read_only: bool
    outputs: tuple[str, ...]
    job: Job | None
    embeddings: Embeddings | None
    bytes: int
    low: bool = False
    op = "collection.search"


@dataclass(frozen=True, slots=True)
class CollectionRemove:
    id: int
    collection: Path
    case: str
    low: bool = False
    op = "collection.remove"
    job = None
    bytes = 0


@dataclass(frozen=True, slots=True)
class CollectionInfo:
    id: int
    collection: Path
    read_only: bool
    low: bool = False
    op = "collection.info"
    job = None
    bytes = 0


CollectionRequest = CollectionAdd | CollectionSearch | CollectionRemove | CollectionInfo
Work = Encode | CollectionRequest  # what waits in the queue
Request = Hello | Work | Cancel | Stats | Shutdown


@dataclass(frozen=True, slots=True)
class Done:
    """A good reply: named arrays as payloads, and whatever else belongs into the header."""

    id: int
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Failed:
    id: int | None
    error: SidecarError
    duplicate_of: int | None = None


Reply = Done | Failed


class Unreadable(Exception):
    """Not a request; `reply` is the answer that its sender is owed."""

    def __init__(self, id: int | None, error: SidecarError) -> None:
        super().__init__(str(error))
        self.reply = Failed(id, error)


def decode(frames: Sequence[Frame]) -> Request:
    """Read one request. Raises Unreadable; anything else is our bug."""
    header = _header(frames)
    id = header.get("id")
    if not _is_id(id):
        raise Unreadable(None, RequestMalformed(f"expected an id from 0 to {MAX_ID}."))
    try:
        if not _is_plain(header, MAX_DEPTH):
            raise RequestMalformed(
                f"expected a header that is a map with text keys, at most {MAX_DEPTH} levels deep, "
                "without extension types."
            )
        if len(frames) > MAX_FRAMES:
            raise RequestMalformed(f"expected 1 to {MAX_FRAMES} frames; {len(frames)} came.")
        return _request(id, header, frames[1:])
    except SidecarError as error:
        raise Unreadable(id, error) from error


def encode(reply: Reply) -> list[Frame]:
    """Write one reply. The payloads are the arrays' own memory, not copies."""
    if isinstance(reply, Failed):
        error: dict[str, Any] = {
            "code": reply.error.code,
            "message": str(reply.error),
            "retryable": reply.error.retryable,
        }
        if reply.duplicate_of is not None:
            error["duplicate_of"] = reply.duplicate_of
        return [msgpack.packb({"v": VERSION, "id": reply.id, "ok": False, "error": error})]
    arrays = {name: np.ascontiguousarray(array) for name, array in reply.arrays.items()}
    outputs = [
        {"name": name, "datatype": DATATYPES[array.dtype], "shape": list(array.shape)}
        for name, array in arrays.items()
    ]
    header = {"v": VERSION, "id": reply.id, "ok": True, "outputs": outputs, **reply.fields}
    return [
        msgpack.packb(header),
        *(array.reshape(-1).view("u1").data for array in arrays.values()),
    ]


def _header(frames: Sequence[Frame]) -> dict[Any, Any]:
    """A map, of whatever kind its keys and values are: its id may be readable nonetheless."""
    if not frames:
        raise Unreadable(None, RequestMalformed(f"expected 1 to {MAX_FRAMES} frames; 0 came."))
    if len(frames[0]) > MAX_HEADER:
        raise Unreadable(
            None,
            RequestTooLarge(
                f"the header has {len(frames[0])} bytes; {MAX_HEADER} are allowed. "
                "Arrays belong into frames of their own."
            ),
        )
    try:
        header = msgpack.unpackb(frames[0], unicode_errors="surrogateescape")
    except Exception as error:  # msgpack raises some ten types on hostile bytes
        raise Unreadable(None, RequestMalformed("the header is not plain msgpack.")) from error
    if not isinstance(header, dict):
        raise Unreadable(None, RequestMalformed("expected a header that is a map."))
    return header


def _request(id: int, header: Mapping[str, Any], payloads: Sequence[Frame]) -> Request:
    version = header.get("v")
    if type(version) is not int or version != VERSION:
        raise ProtocolVersion(
            f"the message has protocol version {_short(version)}; this sidecar speaks {VERSION}."
        )
    params = header.get("params", {})
    if not isinstance(params, dict):
        raise RequestMalformed("params must be a map.")
    inputs = _inputs(header.get("inputs", []), payloads)
    op = header.get("op")
    if op == "encode":
        size = sum(len(payload) for payload in payloads)
        return Encode(id, _job(inputs, params), size, _is_low(params.get("priority")))
    if op in ("collection.add", "collection.search"):
        return _with_image(id, str(op), inputs, params, payloads)
    if inputs:
        raise RequestMalformed(f"the op {_short(op)} takes no inputs; {len(inputs)} came.")
    match op:
        case "hello":
            return Hello(id)
        case "cancel":
            target = params.get("target")
            if not _is_id(target):
                raise RequestMalformed(f"params.target must be an id from 0 to {MAX_ID}.")
            return Cancel(id, target)
        case "stats":
            return Stats(id)
        case "shutdown":
            return Shutdown(id)
        case "collection.remove":
            low = _is_low(params.get("priority"))
            return CollectionRemove(id, _path(params), check_id(params.get("id")), low)
        case "collection.info":
            low = _is_low(params.get("priority"))
            return CollectionInfo(id, _path(params), _flag(params, "read_only"), low)
    raise RequestUnsupported(
        f"the op {_short(op)} is unknown; this sidecar knows hello, encode, cancel, stats, "
        "shutdown, and collection.add, .search, .remove and .info."
    )


def _with_image(
    id: int,
    op: str,
    inputs: Mapping[str, NDArray[Any]],
    params: Mapping[str, Any],
    payloads: Sequence[Frame],
) -> CollectionAdd | CollectionSearch:
    embeddings = _embeddings(inputs, params)
    job: Job | None = None
    outputs: tuple[str, ...] = ()
    if embeddings is None:
        wanted = _job(inputs, params, may_be_none=True)
        outputs = wanted.outputs
        job = replace(wanted, outputs=tuple(dict.fromkeys((*outputs, *CASE_OUTPUTS))))
    path, low = _path(params), _is_low(params.get("priority"))
    size = sum(len(payload) for payload in payloads)
    if op == "collection.add":
        metadata = params.get("metadata")
        return CollectionAdd(
            id,
            path,
            case=check_id(params.get("id")),
            metadata=metadata_text({} if metadata is None else metadata),
            replace=_flag(params, "replace"),
            outputs=outputs,
            job=job,
            embeddings=embeddings,
            bytes=size,
            low=low,
        )
    where, k = params.get("where"), params.get("k")
    metadata_text({} if where is None else where)  # of the same kind, within the same bounds
    if k is not None and not (_is_id(k) and 1 <= k <= MAX_K):
        raise RequestMalformed(f"params.k must be a whole number from 1 to {MAX_K}.")
    return CollectionSearch(
        id,
        path,
        k=10 if k is None else k,
        regions=_flag(params, "regions"),
        where={} if where is None else where,
        read_only=_flag(params, "read_only"),
        outputs=outputs,
        job=job,
        embeddings=embeddings,
        bytes=size,
        low=low,
    )


def _embeddings(inputs: Mapping[str, NDArray[Any]], params: Mapping[str, Any]) -> Embeddings | None:
    """None where an image is given instead."""
    if set(inputs) != set(CASE_OUTPUTS):
        return None
    resolution = _resolution(params.get("resolution"))
    if resolution is None or any(array.dtype != DTYPES["FP32"] for array in inputs.values()):
        raise RequestMalformed(
            "embeddings of an earlier encode must be FP32, and come with the resolution that its "
            "reply names."
        )
    return Embeddings(inputs["pooled_embedding"], inputs["projected_embeddings"], resolution)


def _path(params: Mapping[str, Any]) -> Path:
    value = params.get("collection")
    if not isinstance(value, str) or not 0 < len(value) <= MAX_PATH or "\0" in value:
        raise RequestMalformed("params.collection must be the path of a file.")
    path = Path(value)
    if not path.is_absolute():
        raise RequestMalformed("params.collection must be an absolute path.")
    return path


def _flag(params: Mapping[str, Any], name: str) -> bool:
    value = params.get(name)
    if value is not None and not isinstance(value, bool):
        raise RequestMalformed(f"params.{name} must be true or false.")
    return bool(value)


def _inputs(declared: Any, payloads: Sequence[Frame]) -> dict[str, NDArray[Any]]:
    if not isinstance(declared, list) or len(declared) != len(payloads):
        raise RequestMalformed("inputs must be a list with one entry for each payload.")
    arrays: dict[str, NDArray[Any]] = {}
    for entry, payload in zip(declared, payloads, strict=True):
        match entry:
            case {"name": str(name), "datatype": str(datatype), "shape": list(shape)}:
                arrays[name] = _array(name, datatype, shape, payload)
            case _:
                raise RequestMalformed("each input needs name, datatype and shape.")
    if len(arrays) != len(payloads):
        raise RequestMalformed("two inputs have the same name.")
    return arrays


def _array(name: str, datatype: str, shape: list[Any], payload: Frame) -> NDArray[Any]:
    dtype = DTYPES.get(datatype)
    if dtype is None:
        raise RequestMalformed(
            f"datatype must be one of {', '.join(DTYPES)}; {_short(datatype)} came."
        )
    if len(shape) > MAX_RANK or not all(_is_id(side) for side in shape):
        raise RequestMalformed(
            f"the shape of {_short(name)} must be a short list of whole numbers."
        )
    expected = prod(shape) * dtype.itemsize
    if len(payload) != expected:
        raise RequestMalformed(
            f"{_short(name)} declares {datatype} {shape}, which is {expected} bytes; "
            f"its payload has {len(payload)}."
        )
    try:
        array = np.frombuffer(payload, dtype).reshape(shape)
    except ValueError as error:  # numpy cannot hold [0, 2**32 - 1, 2**32 - 1]
        raise RequestMalformed(f"{_short(name)} declares a shape beyond reason.") from error
    return np.require(array, requirements="A")  # a frame may begin at any byte


def _job(
    inputs: Mapping[str, NDArray[Any]], params: Mapping[str, Any], may_be_none: bool = False
) -> Job:
    return Job(
        input=_input(inputs),
        resolution=_resolution(params.get("resolution")),
        outputs=_outputs(params.get("outputs"), may_be_none),
        heatmap=_heatmap(params.get("heatmap")),
    )


def _input(inputs: Mapping[str, NDArray[Any]]) -> Input:
    match list(inputs.items()):
        case [("pixel_values", array)] if array.dtype == DTYPES["FP32"]:
            return Tensor(array)
        case [("rgb", array)] if array.dtype == DTYPES["UINT8"]:
            return Pixels(array)
        case [("image", array)] if array.dtype == DTYPES["UINT8"]:
            return ImageFile(array.tobytes())
    raise RequestMalformed(
        "expected exactly one image: pixel_values (FP32), rgb (UINT8) or image (UINT8)."
    )


def _resolution(value: Any) -> tuple[int, int] | None:
    match value:
        case None:
            return None
        case int() if _is_id(value):
            return value, value
        case [height, width] if _is_id(height) and _is_id(width):
            return height, width
    raise RequestMalformed("resolution must be a side length in pixels, or [height, width].")


def _outputs(value: Any, may_be_none: bool) -> tuple[str, ...]:
    known = (*OUTPUTS, HEATMAP_PNG)
    if value is None:
        return OUTPUTS
    if not isinstance(value, list) or not (value or may_be_none):
        raise RequestMalformed(f"outputs must be a list of names from {', '.join(known)}.")
    for name in value:
        if name not in known:
            raise RequestUnsupported(
                f"the output {_short(name)} is unknown; this sidecar knows {', '.join(known)}."
            )
    return tuple(dict.fromkeys(value))


def _heatmap(value: Any) -> HeatmapOptions:
    if value is None:
        return HeatmapOptions()
    if not isinstance(value, dict):
        raise RequestMalformed("heatmap must be a map.")
    return HeatmapOptions.parse(value)


def _is_low(value: Any) -> bool:
    if value not in (None, "normal", "low"):
        raise RequestMalformed("priority must be normal or low.")
    return bool(value == "low")


def _is_id(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_ID


def _is_plain(value: Any, depth: int) -> bool:
    """True if maps have text keys only, text is Unicode, no value is of an extension type, and
    nothing is nested deeper than `depth`.
    """
    if isinstance(value, dict):
        return depth > 0 and all(
            isinstance(key, str) and _is_plain(key, depth) and _is_plain(item, depth - 1)
            for key, item in value.items()
        )
    if isinstance(value, list):
        return depth > 0 and all(_is_plain(item, depth - 1) for item in value)
    if isinstance(value, str):
        return value.isascii() or not any("\ud800" <= character <= "\udfff" for character in value)
    return value is None or isinstance(value, bool | int | float | bytes)


def _short(value: object) -> str:
    """What a stranger sent, safe to repeat in a message."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"
