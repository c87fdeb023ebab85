"""Where a graph's weights lie is read from the graph itself, however deep they are."""

import contextlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from sidecar.onnx_files import external_files
from tests import stand_in


def tensor(location: str) -> TensorProto:
    made = numpy_helper.from_array(np.zeros(4, np.float32), location)
    made.ClearField("raw_data")
    made.data_location = TensorProto.EXTERNAL
    for key, value in (("offset", "0"), ("location", location), ("length", "16")):
        entry = made.external_data.add()
        entry.key, entry.value = key, value
    return made


def graph(*initializers: TensorProto, nodes: tuple[onnx.NodeProto, ...] = ()) -> onnx.GraphProto:
    return helper.make_graph(list(nodes), "g", [], [], list(initializers))


def model(graph: onnx.GraphProto, **fields: object) -> memoryview:
    return memoryview(helper.make_model(graph, **fields).SerializeToString())


def constant(location: str) -> onnx.NodeProto:
    return helper.make_node("Constant", [], ["c"], value=tensor(location))


def branch(inner: onnx.GraphProto) -> onnx.NodeProto:
    return helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=graph())


def test_a_graph_with_its_weights_inside_reads_no_file(tmp_path: Path) -> None:
    path = stand_in.make(tmp_path / "m") / "vision_encoder_quant.onnx"
    assert external_files(memoryview(path.read_bytes())) == set()


PLACES = {
    "initializers": model(graph(tensor("a"), tensor("b"), tensor("a"))),
    "an attribute": model(graph(tensor("a"), nodes=(constant("b"),))),
    "a graph in a graph": model(graph(tensor("a"), nodes=(branch(graph(tensor("b"))),))),
    "a graph in a graph in a graph": model(
        graph(tensor("a"), nodes=(branch(graph(nodes=(branch(graph(tensor("b"))),))),))
    ),
    "a function": model(
        graph(tensor("a")),
        functions=[helper.make_function("d", "f", [], ["c"], [constant("b")], [])],
    ),
    "a sparse tensor": model(
        helper.make_graph(
            [],
            "g",
            [],
            [],
            [tensor("a")],
            sparse_initializer=[helper.make_sparse_tensor(tensor("b"), tensor("b"), [4])],
        )
    ),
}


@pytest.mark.parametrize("serialised", PLACES.values(), ids=PLACES)
def test_weights_are_found_in(serialised: memoryview) -> None:
    assert external_files(serialised) == {"a", "b"}


def test_graphs_nested_beyond_reason_are_refused() -> None:
    def field(number: int, content: bytes) -> bytes:
        size = len(content)
        return bytes([number << 3 | 2, size & 0x7F | 0x80, size >> 7]) + content

    inner = b""
    for _ in range(30):  # a graph in an attribute of a node of a graph
        inner = field(1, field(5, field(6, inner)))
    with pytest.raises(ValueError, match="nested"):
        external_files(memoryview(field(7, inner)))


@pytest.mark.parametrize(
    "data",
    [
        b"\x3a\x05\x00",
        b"\x80",
        b"\xff" * 11,
        b"\x3b",
        b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    ],
    ids=["a field cut short", "a key cut short", "a long key", "a group", "a long field"],
)
def test_what_is_no_graph_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"field|number|wire"):
        external_files(memoryview(data))


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        external_files(memoryview(data))
