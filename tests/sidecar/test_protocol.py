"""The codec on anything at all: a request, or the reply that its sender is owed; no exception."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar import protocol
from sidecar.errors import Busy
from sidecar.job import OUTPUTS, HeatmapOptions
from sidecar.protocol import (
    CASE_OUTPUTS,
    CollectionAdd,
    CollectionInfo,
    CollectionRemove,
    CollectionSearch,
    Done,
    Encode,
    Failed,
    Hello,
    Request,
    Unreadable,
)
from tests import fuzz
from tests.client import ROOT, message
from tests.sidecar import messages

SCALARS = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=9)
)
PLAIN = st.recursive(
    SCALARS | st.binary(max_size=9),
    lambda values: (
        st.lists(values, max_size=4) | st.dictionaries(st.text(max_size=9), values, max_size=4)
    ),
    max_leaves=12,
)
KEYS = st.sampled_from(["v", "id", "op", "inputs", "params"])
COLLECTION_OPS = [f"collection.{verb}" for verb in ("add", "search", "remove", "info")]
OPS = st.sampled_from(["hello", "encode", "cancel", "stats", "shutdown", *COLLECTION_OPS])
INPUT = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["pixel_values", "rgb", "image"]) | st.text(max_size=3),
        "datatype": st.sampled_from(["FP32", "UINT8"]) | st.text(max_size=3),
        "shape": st.lists(st.integers(0, 3) | SCALARS, max_size=5),
    }
)
PARAMS = st.dictionaries(
    st.sampled_from(
        ["resolution", "outputs", "heatmap", "target", "collection", "id", "metadata", "k", "where"]
    ),
    PLAIN
    | st.just("/nonexistent/folder/cases")
    | st.lists(st.sampled_from(["heatmap_png", "pooled_embedding"]))
    | st.dictionaries(st.sampled_from(["colormap", "alpha", "invert"]), SCALARS),
)
LIKELY = st.fixed_dictionaries(
    {
        "v": st.just(1),
        "id": st.integers(0, 2**32 - 1),
        "op": OPS,
        "inputs": st.lists(INPUT, max_size=2),
        "params": PARAMS,
    }
)
HEADERS = (
    (LIKELY | st.dictionaries(KEYS, PLAIN)).map(msgpack.packb)
    | PLAIN.map(msgpack.packb)
    | st.binary(max_size=60)
)


def outcome(frames: list[bytes]) -> Request | Unreadable:
    try:
        return protocol.decode(frames)
    except Unreadable as unreadable:
        return unreadable


@settings(max_examples=500, deadline=None)
@given(HEADERS, st.lists(st.binary(max_size=40), max_size=9))
def test_any_message_is_a_request_or_gets_a_reply(header: bytes, payloads: list[bytes]) -> None:
    found = outcome([header, *payloads])
    if isinstance(found, Unreadable):
        reply = msgpack.unpackb(protocol.encode(found.reply)[0])
        assert reply["ok"] is False
        assert reply["error"]["message"]
        assert len(reply["error"]["message"]) < 400


def test_ten_thousand_mutated_messages_are_requests_or_get_a_reply() -> None:
    for frames in fuzz.messages(seed=0, count=10_000):
        outcome(frames)


@given(st.integers(0, 2**32 - 1))
def test_any_id_is_read_and_repeated(id: int) -> None:
    assert protocol.decode(message("hello", id)).id == id
    [header] = protocol.encode(Done(id))
    assert msgpack.unpackb(header)["id"] == id


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.sampled_from(["<f4", "u1"]))
def test_arrays_come_out_as_they_went_in(shape: list[int], dtype: str) -> None:
    array = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    header, payload = protocol.encode(Done(1, arrays={"x": array}))
    [output] = msgpack.unpackb(header)["outputs"]
    assert output["shape"] == shape
    assert output["datatype"] == protocol.DATATYPES[np.dtype(dtype)]
    np.testing.assert_array_equal(np.frombuffer(payload, dtype).reshape(shape), array)


def test_an_array_that_is_not_contiguous_is_written_in_row_major_order() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3).T
    _, payload = protocol.encode(Done(1, arrays={"x": array}))
    assert np.frombuffer(payload, np.float32).tolist() == [0, 3, 1, 4, 2, 5]


def test_a_payload_that_begins_at_an_odd_byte_is_read() -> None:
    tensor = np.arange(3, dtype=np.float32).reshape(1, 3, 1, 1)
    header, payload = message("encode", 1, {"pixel_values": tensor})
    request = protocol.decode([header, memoryview(b"x" + payload)[1:]])
    assert isinstance(request, Encode)
    np.testing.assert_array_equal(request.job.input.pixel_values, tensor)  # type: ignore[union-attr]


def pack(**changes: Any) -> bytes:
    header = {"v": 1, "id": 5, "op": "hello", "inputs": [], "params": {}} | changes
    return bytes(msgpack.packb(header))


def nested(levels: int) -> dict[str, Any]:
    return {"x": nested(levels - 1)} if levels > 1 else {}


def in_lists(levels: int) -> list[Any]:
    return [in_lists(levels - 1)] if levels > 1 else [0]


def padded(size: int) -> bytes:
    """A request for hello whose header has so many bytes."""
    overhead = len(pack(x=bytes(100_000))) - 100_000
    return pack(x=bytes(size - overhead))


IMAGE = {"name": "image", "datatype": "UINT8", "shape": [1]}


def encode(**params: Any) -> bytes:
    return pack(op="encode", inputs=[IMAGE], params=params)


HERE = str(Path("cases").resolve())


def info(**params: Any) -> bytes:
    return pack(op="collection.info", params=params)


EARLIER = [
    {"name": name, "datatype": "FP32", "shape": [1, 1]}
    for name in ("projected_embeddings", "pooled_embedding")
]
FLOATS = [bytes(4)] * 2


def add(inputs: list[dict[str, Any]], resolution: int | None = None, **params: Any) -> bytes:
    params = {"collection": HERE, "id": "a", "resolution": resolution} | params
    return pack(op="collection.add", inputs=inputs, params=params)


def search(**params: Any) -> bytes:
    return pack(op="collection.search", inputs=[IMAGE], params={"collection": HERE} | params)


WRONG: dict[str, tuple[list[bytes], int | None, str]] = {
    "an extension type": ([pack(x=msgpack.ExtType(5, b"x"))], 5, "request.malformed"),
    "a timestamp": ([pack(x=msgpack.Timestamp(1))], 5, "request.malformed"),
    "no frame": ([], None, "request.malformed"),
    "nine frames": ([pack(), *[b""] * 8], 5, "request.malformed"),
    "a header of 128 KiB and a byte": ([padded(128 * 1024 + 1)], None, "request.too_large"),
    "a list": ([msgpack.packb([1])], None, "request.malformed"),
    "maps of 17 levels": ([pack(params=nested(16))], 5, "request.malformed"),
    "lists of 17 levels": ([pack(x=in_lists(16))], 5, "request.malformed"),
    "half a surrogate pair": (
        [pack().replace(b"hello", b"he\xed\xa0\x80")],
        5,
        "request.malformed",
    ),
    "half a surrogate pair in a key": (
        [pack(abc=1).replace(b"abc", b"\xed\xa0\x80")],
        5,
        "request.malformed",
    ),
    "an id of -1": ([pack(id=-1)], None, "request.malformed"),
    "an id of 2**32": ([pack(id=2**32)], None, "request.malformed"),
    "an id that is true": ([pack(id=True)], None, "request.malformed"),
    "an id that is 1.0": ([pack(id=1.0)], None, "request.malformed"),
    "keys that are numbers": ([msgpack.packb({1: 2})], None, "request.malformed"),
    "keys that are bytes": ([msgpack.packb({b"id": 2})], None, "request.malformed"),
    "text that is not UTF-8": ([pack().replace(b"hello", b"\xff" * 5)], 5, "request.malformed"),
    "bytes after the header": ([pack() + b"\x01"], None, "request.malformed"),
    "an array that claims 4 billion": ([b"\xdd\xff\xff\xff\xff"], None, "request.malformed"),
    "a map that claims 4 billion": ([b"\xdf\xff\xff\xff\xff"], None, "request.malformed"),
    "version 1.0": ([pack(v=1.0)], 5, "protocol.version"),
    "version true": ([pack(v=True)], 5, "protocol.version"),
    "no version": ([pack(v=None)], 5, "protocol.version"),
    "params in a list": ([pack(params=[])], 5, "request.malformed"),
    "inputs in a map": ([pack(inputs={})], 5, "request.malformed"),
    "a payload nobody declared": ([pack(), b"x"], 5, "request.malformed"),
    "an input without payload": ([pack(op="encode", inputs=[IMAGE])], 5, "request.malformed"),
    "an input that hello does not take": ([pack(inputs=[IMAGE]), b"x"], 5, "request.malformed"),
    "two inputs of one name": (
        [pack(op="encode", inputs=[IMAGE, IMAGE]), b"x", b"x"],
        5,
        "request.malformed",
    ),
    "an input that is a name": (
        [pack(op="encode", inputs=["image"]), b"x"],
        5,
        "request.malformed",
    ),
    "a shape below zero": (
        [pack(op="encode", inputs=[IMAGE | {"shape": [-1]}]), b"x"],
        5,
        "request.malformed",
    ),
    "a shape beyond reason": (
        [pack(op="encode", inputs=[IMAGE | {"shape": [0, 2**32 - 1, 2**32 - 1, 3]}]), b""],
        5,
        "request.malformed",
    ),
    "another datatype": (
        [pack(op="encode", inputs=[IMAGE | {"datatype": "FP64"}]), b"x"],
        5,
        "request.malformed",
    ),
    "no input": ([pack(op="encode")], 5, "request.malformed"),
    "an input of another name": (
        [pack(op="encode", inputs=[IMAGE | {"name": "picture"}]), b"x"],
        5,
        "request.malformed",
    ),
    "floats in an image": (
        [pack(op="encode", inputs=[IMAGE | {"datatype": "FP32"}]), b"1234"],
        5,
        "request.malformed",
    ),
    "bytes in rgb as floats": (
        [pack(op="encode", inputs=[IMAGE | {"name": "rgb", "datatype": "FP32"}]), b"1234"],
        5,
        "request.malformed",
    ),
    "bytes in pixel_values": (
        [pack(op="encode", inputs=[IMAGE | {"name": "pixel_values"}]), b"x"],
        5,
        "request.malformed",
    ),
    "fewer bytes than declared": (
        [pack(op="encode", inputs=[IMAGE | {"shape": [2]}]), b"x"],
        5,
        "request.malformed",
    ),
    "an input without a shape": (
        [pack(op="encode", inputs=[{"name": "image", "datatype": "UINT8"}]), b"x"],
        5,
        "request.malformed",
    ),
    "a shape of nine sides": (
        [pack(op="encode", inputs=[IMAGE | {"shape": [1] * 9}]), b"x"],
        5,
        "request.malformed",
    ),
    "a shape of true": (
        [pack(op="encode", inputs=[IMAGE | {"shape": [True]}]), b"x"],
        5,
        "request.malformed",
    ),
    "outputs in a text": ([encode(outputs="heatmap_png"), b"x"], 5, "request.malformed"),
    "no outputs": ([encode(outputs=[]), b"x"], 5, "request.malformed"),
    "an unknown output": ([encode(outputs=["tokens"]), b"x"], 5, "request.unsupported"),
    "an output that is a number": ([encode(outputs=[7]), b"x"], 5, "request.unsupported"),
    "a resolution in text": ([encode(resolution="448"), b"x"], 5, "request.malformed"),
    "a resolution below zero": ([encode(resolution=-448), b"x"], 5, "request.malformed"),
    "three sides": ([encode(resolution=[1, 2, 3]), b"x"], 5, "request.malformed"),
    "a side that is text": ([encode(resolution=[1, "2"]), b"x"], 5, "request.malformed"),
    "another side that is text": ([encode(resolution=["1", 2]), b"x"], 5, "request.malformed"),
    "a heatmap in a list": ([encode(heatmap=[]), b"x"], 5, "request.malformed"),
    "an alpha that is true": ([encode(heatmap={"alpha": True}), b"x"], 5, "request.malformed"),
    "an alpha above one": ([encode(heatmap={"alpha": 1.01}), b"x"], 5, "request.malformed"),
    "a threshold below zero": (
        [encode(heatmap={"threshold": -0.1}), b"x"],
        5,
        "request.malformed",
    ),
    "an alpha that is no number": (
        [encode(heatmap={"alpha": float("nan")}), b"x"],
        5,
        "request.malformed",
    ),
    "a flag that is a number": ([encode(heatmap={"invert": 1}), b"x"], 5, "request.malformed"),
    "a colormap that is a number": (
        [encode(heatmap={"colormap": 1}), b"x"],
        5,
        "request.malformed",
    ),
    "an unknown colormap": ([encode(heatmap={"colormap": "jet"}), b"x"], 5, "request.malformed"),
    "an unknown priority": ([encode(priority="high"), b"x"], 5, "request.malformed"),
    "a target beyond 32 bits": (
        [pack(op="cancel", params={"target": 2**32})],
        5,
        "request.malformed",
    ),
    "a collection without a path": ([info()], 5, "request.malformed"),
    "a collection whose path is empty": ([info(collection="")], 5, "request.malformed"),
    "a collection whose path is a number": ([info(collection=7)], 5, "request.malformed"),
    "a collection whose path has a zero byte": (
        [info(collection="/a\0b")],
        5,
        "request.malformed",
    ),
    "a collection by a relative path": ([info(collection="a.cases")], 5, "request.malformed"),
    "a flag of a collection that is a number": (
        [info(collection=HERE, read_only=1)],
        5,
        "request.malformed",
    ),
    "embeddings without the resolution of their reply": (
        [add(EARLIER), *FLOATS],
        5,
        "request.malformed",
    ),
    "embeddings of another datatype": (
        [add([part | {"datatype": "UINT8", "shape": [1, 1, 4]} for part in EARLIER], 448), *FLOATS],
        5,
        "request.malformed",
    ),
    "a case without an id": ([add([IMAGE], id=None), b"x"], 5, "request.malformed"),
    "metadata in a list": ([add([IMAGE], metadata=[]), b"x"], 5, "request.malformed"),
    "a replace that is a number": ([add([IMAGE], replace=1), b"x"], 5, "request.malformed"),
    "an unknown priority of a case": ([add([IMAGE], priority=1), b"x"], 5, "request.malformed"),
    "no neighbour": ([search(k=0), b"x"], 5, "request.malformed"),
    "1001 neighbours": ([search(k=1001), b"x"], 5, "request.malformed"),
    "true neighbours": ([search(k=True), b"x"], 5, "request.malformed"),
    "regions that are a number": ([search(regions=1), b"x"], 5, "request.malformed"),
    "a read_only that is text": ([search(read_only="yes"), b"x"], 5, "request.malformed"),
    "a where in a list": ([search(where=[]), b"x"], 5, "request.malformed"),
    "a search for nothing": (
        [pack(op="collection.search", params={"collection": HERE})],
        5,
        "request.malformed",
    ),
    "a case to remove that is a number": (
        [pack(op="collection.remove", params={"collection": HERE, "id": 7})],
        5,
        "request.malformed",
    ),
    "an op that is a number": ([pack(op=7)], 5, "request.unsupported"),
    "an op that is a page long": ([pack(op="x" * 9000)], 5, "request.unsupported"),
    "no target": ([pack(op="cancel")], 5, "request.malformed"),
    "a target that is text": ([pack(op="cancel", params={"target": "5"})], 5, "request.malformed"),
}


@pytest.mark.parametrize(("frames", "id", "code"), WRONG.values(), ids=WRONG)
def test_it_is_refused_by_code(frames: list[bytes], id: int | None, code: str) -> None:
    with pytest.raises(Unreadable) as unreadable:
        protocol.decode(frames)
    reply = unreadable.value.reply
    assert (reply.id, reply.error.code) == (id, code)
    assert str(unreadable.value) == str(reply.error)


def test_what_is_said_of_each_was_reviewed() -> None:
    said = {}
    for name, (frames, _, _) in WRONG.items():
        with pytest.raises(Unreadable) as unreadable:
            protocol.decode(frames)
        said[name] = str(unreadable.value)
    messages.check("protocol", said)


def test_every_parameter_reaches_the_job() -> None:
    params = {
        "resolution": [448, 224],
        "outputs": ["heatmap_png", "pooled_embedding", "heatmap_png"],
        "heatmap": {"colormap": "grey", "alpha": 1, "threshold": 0, "invert": True, "legend": None},
        "priority": "low",
    }
    request = protocol.decode([encode(**params), b"x"])
    assert isinstance(request, Encode)
    assert (request.bytes, request.low) == (1, True)
    assert request.job.resolution == (448, 224)
    assert request.job.outputs == ("heatmap_png", "pooled_embedding")  # once each
    assert request.job.heatmap == HeatmapOptions("grey", alpha=1, threshold=0, invert=True)


@pytest.mark.parametrize("flag", [None, False, True])
def test_a_flag_is_read_as_it_stands_and_false_without_it(flag: bool | None) -> None:
    request = protocol.decode([info(collection=HERE, read_only=flag)])
    assert isinstance(request, CollectionInfo)
    assert (request.collection, request.read_only) == (Path(HERE), flag is True)


def test_without_parameters_a_job_has_the_defaults() -> None:
    request = protocol.decode([encode(), b"x"])
    assert isinstance(request, Encode)
    assert (request.bytes, request.low) == (1, False)
    job = request.job
    assert (job.resolution, job.outputs, job.heatmap) == (None, OUTPUTS, HeatmapOptions())
    side = protocol.decode([encode(resolution=224, priority="normal"), b"x"])
    assert isinstance(side, Encode)
    assert (side.job.resolution, side.low) == ((224, 224), False)


@pytest.mark.parametrize("k", [1, 10, 1000])
def test_a_search_is_read_as_it_stands(k: int) -> None:
    params = {"k": k, "regions": True, "where": {"a": 1}, "read_only": True, "priority": "low"}
    request = protocol.decode([search(**params), b"x"])
    assert isinstance(request, CollectionSearch)
    found = (request.k, request.regions, request.where, request.read_only, request.low)
    assert found == (k, True, {"a": 1}, True, True)


def test_without_parameters_a_search_has_the_defaults() -> None:
    request = protocol.decode([search(), b"x"])
    assert isinstance(request, CollectionSearch)
    found = (request.k, request.regions, request.where, request.read_only, request.low)
    assert found == (10, False, {}, False, False)
    assert (request.outputs, request.bytes, request.embeddings) == (OUTPUTS, 1, None)
    assert request.job is not None
    assert set(request.job.outputs) == set(OUTPUTS)


@pytest.mark.parametrize("op", ["collection.add", "collection.search"])
def test_the_embeddings_of_an_earlier_encode_are_read(op: str) -> None:
    params = {"collection": HERE, "id": "a", "resolution": 448}
    payloads = [np.float32(number).tobytes() for number in (1, 2)]
    request = protocol.decode([pack(op=op, inputs=EARLIER, params=params), *payloads])
    assert isinstance(request, CollectionAdd | CollectionSearch)
    assert (request.job, request.outputs, request.bytes) == (None, (), 8)
    assert request.embeddings is not None
    assert request.embeddings.projected.tolist() == [[1]]
    assert request.embeddings.pooled.tolist() == [[2]]
    assert request.embeddings.resolution == (448, 448)


def test_a_shape_of_eight_sides_is_read() -> None:
    tensor = {"name": "pixel_values", "datatype": "FP32", "shape": [1] * 8}
    request = protocol.decode([pack(op="encode", inputs=[tensor]), bytes(4)])
    assert isinstance(request, Encode)
    assert request.job.input.pixel_values.ndim == 8  # type: ignore[union-attr]


def test_a_case_needs_its_embeddings_whatever_else_is_wanted() -> None:
    request = protocol.decode([add([IMAGE], outputs=["heatmap_png"], priority="low"), b"x"])
    assert isinstance(request, CollectionAdd)
    assert (request.outputs, request.low, request.replace) == (("heatmap_png",), True, False)
    assert (request.case, request.metadata, request.bytes) == ("a", "{}", 1)
    assert request.job is not None
    assert request.job.outputs == ("heatmap_png", *CASE_OUTPUTS)


@pytest.mark.parametrize("op", ["collection.remove", "collection.info"])
def test_the_priority_of_what_takes_no_image_is_read(op: str) -> None:
    for priority, low in {None: False, "normal": False, "low": True}.items():
        params = {"collection": HERE, "id": "a", "priority": priority}
        request = protocol.decode([pack(op=op, params=params)])
        assert isinstance(request, CollectionRemove | CollectionInfo)
        assert (request.id, request.collection, request.low) == (5, Path(HERE), low)


def test_what_a_stranger_sent_is_cut_short_where_it_is_repeated() -> None:
    for length in (38, 39):
        with pytest.raises(Unreadable) as unreadable:
            protocol.decode([pack(op="x" * length)])
        word = f"'{'x' * length}'" if length == 38 else f"'{'x' * 39}…"
        assert f"the op {word} is unknown" in str(unreadable.value)


@pytest.mark.parametrize(
    "frames",
    [
        [padded(128 * 1024)],
        [pack(params=nested(15))],
        [pack(x=in_lists(15))],
        [pack(x="αβγ", y="😀", unknown=None)],
        [pack(id=0)],
        [pack(id=2**32 - 1)],
    ],
    ids=[
        "128 KiB",
        "maps of 16 levels",
        "lists of 16 levels",
        "text",
        "the least id",
        "the largest",
    ],
)
def test_what_is_just_within_the_limits_is_read(frames: list[bytes]) -> None:
    assert isinstance(protocol.decode(frames), Hello)


def test_a_failure_tells_whether_to_try_again() -> None:
    [header] = protocol.encode(Failed(1, Busy("later.")))
    assert msgpack.unpackb(header)["error"] == {
        "code": "busy",
        "message": "later.",
        "retryable": True,
    }


def test_the_wire_loads_no_engine_no_image_library_and_no_socket() -> None:
    code = (
        "import sidecar.protocol, sidecar.handshake, sys\n"
        "assert not {'onnxruntime', 'PIL', 'zmq'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
