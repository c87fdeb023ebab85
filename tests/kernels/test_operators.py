"""Our operators inside onnxruntime, and the sidecar's choice between the two graphs."""

import ctypes
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from sidecar import custom_ops, engine, manifest, session
from sidecar.custom_ops import CustomOpsUnavailable
from sidecar.manifest import CustomOpsGraph, Manifest
from sidecar.model_files import ModelFiles
from tests import stand_in

DOMAIN = "vision.sidecar"
KERNELS = DOMAIN, "Attention"
PLAIN = "com.microsoft", "MultiHeadAttention"
MODEL = "vision_encoder_kernels.onnx"


@pytest.fixture(scope="module", autouse=True)
def _served() -> None:
    try:
        custom_ops.variant(["Attention"])
    except CustomOpsUnavailable as error:
        pytest.skip(str(error))


def one_node(
    operator: tuple[str, str], heads: int = 2, scale: float = 0.2
) -> onnxruntime.InferenceSession:
    domain, name = operator
    node = helper.make_node(
        name, ["q", "k", "v"], ["result"], domain=domain, num_heads=heads, scale=scale
    )
    names = [
        helper.make_tensor_value_info(x, TensorProto.FLOAT, ["batch", "tokens", f"width of {x}"])
        for x in ("q", "k", "v", "result")
    ]
    return load_nodes(helper.make_graph([node], "one node", names[:3], names[3:]), domain)


def load_nodes(graph: onnx.GraphProto, domain: str) -> onnxruntime.InferenceSession:
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(domain, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.register_custom_ops_library(str(custom_ops.LIBRARY))
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def inputs(*shape: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(shape)
    return {name: random.normal(size=shape).astype(np.float32) for name in "qkv"}


@pytest.mark.parametrize("shape", [(1, 1, 2), (1, 256, 144), (2, 130, 96), (1, 1024, 20)], ids=str)
def test_attention_agrees_with_onnxruntimes_own(shape: tuple[int, int, int]) -> None:
    arrays = inputs(*shape)
    [ours] = one_node(KERNELS).run(None, arrays)
    [theirs] = one_node(PLAIN).run(None, arrays)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() < 0.02 * np.ptp(arrays["v"])


def test_runs_of_other_sizes_do_not_disturb_each_other() -> None:
    attention = one_node(KERNELS)
    large, small = inputs(1, 512, 64), inputs(1, 100, 64)
    first = attention.run(None, small)[0]
    attention.run(None, large)
    assert np.array_equal(attention.run(None, small)[0], first)


def test_no_image_gives_no_result_and_no_crash() -> None:
    assert one_node(KERNELS).run(None, inputs(0, 4, 8))[0].shape == (0, 4, 8)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        pytest.param(lambda: one_node(KERNELS, heads=0), "num_heads", id="no heads"),
        pytest.param(lambda: one_node(KERNELS, scale=-1.0), "scale above zero", id="bad scale"),
        pytest.param(
            lambda: one_node(KERNELS, heads=3).run(None, inputs(1, 4, 8)),
            "num_heads times",
            id="heads do not divide the width",
        ),
        pytest.param(
            lambda: one_node(KERNELS).run(None, {**inputs(1, 4, 8), "k": inputs(1, 4, 6)["k"]}),
            "of one shape",
            id="keys are narrower",
        ),
    ],
)
def test_what_attention_cannot_do_is_said_in_a_sentence(
    make: Callable[[], object], sentence: str
) -> None:
    with pytest.raises(Exception, match=sentence):
        make()


def test_a_run_is_ended_in_the_midst_of_an_operator_and_the_next_one_is_not() -> None:
    attention = one_node(KERNELS, heads=8)
    arrays = inputs(1, 8192, 8 * 64)
    library = ctypes.CDLL(str(custom_ops.LIBRARY))
    library.vision_kernels_begin(ctypes.c_uint64(2**40))
    ending = threading.Timer(0.05, library.vision_kernels_end, (ctypes.c_uint64(2**40),))
    ending.start()
    with pytest.raises(Exception, match="ended"):
        attention.run(None, arrays)
    ending.join()
    library.vision_kernels_begin(ctypes.c_uint64(2**40 + 1))
    attention.run(None, inputs(1, 4, 8 * 64))


def layer(
    inputs: int, outputs: int, factors: bool = False, activation: str = "none"
) -> onnxruntime.InferenceSession:
    """QuantiseTokens and Linear, one after the other."""
    optional = ["factors"] if factors else []
    quantise = helper.make_node(
        "QuantiseTokens", ["x", *optional], ["integers", "scales"], domain=DOMAIN
    )
    linear = helper.make_node(
        "Linear",
        ["integers", "scales", "weights", "steps", *(["bias"] if factors else [])],
        ["result"],
        domain=DOMAIN,
        activation=activation,
    )
    wanted: dict[str, tuple[TensorProto.DataType, list[str | int | None]]] = {
        "x": (TensorProto.FLOAT, ["batch", "tokens", inputs]),
        "factors": (TensorProto.FLOAT, ["any"]),
        "weights": (TensorProto.INT8, ["rows", outputs]),
        "steps": (TensorProto.FLOAT, ["columns"]),
        "bias": (TensorProto.FLOAT, ["columns"]),
    }
    used = {*quantise.input, *linear.input}
    values = [
        helper.make_tensor_value_info(name, *what) for name, what in wanted.items() if name in used
    ]
    result = helper.make_tensor_value_info("result", TensorProto.FLOAT, None)
    graph = helper.make_graph([quantise, linear], "layer", values, [result])
    return load_nodes(graph, DOMAIN)


def layer_inputs(*shape: int, outputs: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(shape)
    return {
        "x": random.normal(size=shape).astype(np.float32),
        "factors": random.uniform(0.5, 2, shape[-1]).astype(np.float32),
        "weights": random.integers(-127, 128, (shape[-1], outputs)).astype(np.int8),
        "steps": random.uniform(0.001, 0.01, outputs).astype(np.float32),
        "bias": random.normal(size=outputs).astype(np.float32),
    }


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 130, 66), (1, 256, 1152), (3, 7, 33)], ids=str)
def test_a_layer_is_as_exact_as_8_bits_for_each_token_allow(shape: tuple[int, int, int]) -> None:
    arrays = layer_inputs(*shape, outputs=70)
    [found] = layer(shape[-1], 70, factors=True).run(None, arrays)
    x = (arrays["x"] * arrays["factors"]).astype(np.float64)
    expected = x @ arrays["weights"] * arrays["steps"] + arrays["bias"]
    assert found.shape == (*shape[:2], 70)
    token = np.maximum(x.max(-1, keepdims=True), 0) - np.minimum(x.min(-1, keepdims=True), 0)
    reach = np.abs(arrays["weights"].astype(float)).sum(0) * arrays["steps"]
    assert (np.abs(found - expected) <= 0.51 / 255 * token * reach + 1e-4).all()


def test_no_token_gives_no_result_and_no_crash() -> None:
    arrays = layer_inputs(0, 4, 8, outputs=6)
    del arrays["factors"], arrays["bias"]
    assert layer(8, 6).run(None, arrays)[0].shape == (0, 4, 6)


@pytest.mark.parametrize(
    ("name", "array", "sentence"),
    [
        pytest.param("weights", np.zeros((9, 6), np.int8), "to match", id="more weights"),
        pytest.param("factors", np.ones(7, np.float32), "factor per input", id="fewer factors"),
        pytest.param("steps", np.ones(5, np.float32), "one scale and one bias", id="fewer steps"),
        pytest.param("bias", np.ones(7, np.float32), "one scale and one bias", id="more biases"),
    ],
)
def test_what_a_layer_cannot_do_is_said_in_a_sentence(
    name: str, array: np.ndarray, sentence: str
) -> None:
    with pytest.raises(Exception, match=sentence):
        layer(8, 6, factors=True).run(None, {**layer_inputs(1, 4, 8, outputs=6), name: array})


def test_an_unknown_activation_is_refused() -> None:
    with pytest.raises(Exception, match="none, Gelu or FastGelu"):
        layer(8, 6, activation="Relu")


def operators(
    nodes: list[onnx.NodeProto], arrays: dict[str, np.ndarray]
) -> onnxruntime.InferenceSession:
    """A graph of these nodes, the last of which makes `result`; its inputs are the arrays."""
    kinds = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.int8): TensorProto.INT8}
    values = [
        helper.make_tensor_value_info(name, kinds[array.dtype], [None] * array.ndim)
        for name, array in arrays.items()
    ]
    result = helper.make_tensor_value_info("result", TensorProto.FLOAT, None)
    return load_nodes(helper.make_graph(nodes, "operators", values, [result]), DOMAIN)


def mlp_inputs(tokens: int, width: int, hidden: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(tokens)
    return {
        "x": random.normal(size=(1, tokens, width)).astype(np.float32),
        "w1": random.integers(-127, 128, (width, hidden)).astype(np.int8),
        "s1": random.uniform(0.001, 0.01, hidden).astype(np.float32),
        "b1": random.normal(size=hidden).astype(np.float32),
        "w2": random.integers(-127, 128, (hidden, width)).astype(np.int8),
        "s2": random.uniform(0.001, 0.01, width).astype(np.float32),
        "b2": random.normal(size=width).astype(np.float32),
        "factors": random.uniform(0.5, 2, hidden).astype(np.float32),
    }


TOKENS = helper.make_node("QuantiseTokens", ["x"], ["t", "ts"], domain=DOMAIN)
FIRST, SECOND = ["w1", "s1", "b1"], ["w2", "s2", "b2"]


def mlp(*more: str, activation: str = "Gelu") -> onnx.NodeProto:
    """`more`: the factors and the residual."""
    inputs = ["t", "ts", *FIRST, *SECOND, *more]
    return helper.make_node("Mlp", inputs, ["result"], domain=DOMAIN, activation=activation)


@pytest.mark.parametrize("tokens", [5, 800], ids=["few tokens", "many tokens"])
def test_mlp_gives_the_very_numbers_of_its_steps(tokens: int) -> None:
    steps = [
        TOKENS,
        helper.make_node("Linear", ["t", "ts", *FIRST], ["h"], domain=DOMAIN, activation="Gelu"),
        helper.make_node("QuantiseTokens", ["h", "factors"], ["ht", "hts"], domain=DOMAIN),
        helper.make_node("Linear", ["ht", "hts", *SECOND], ["y"], domain=DOMAIN, activation="none"),
        helper.make_node("Add", ["x", "y"], ["result"]),
    ]
    arrays = mlp_inputs(tokens, 20, 70)
    [expected] = operators(steps, arrays).run(None, arrays)
    [found] = operators([TOKENS, mlp("factors", "x")], arrays).run(None, arrays)
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("residual", [[], ["", "x"]], ids=["without residual", "with residual"])
def test_mlp_needs_no_factors(residual: list[str]) -> None:
    arrays = mlp_inputs(5, 20, 70)
    arrays.pop("factors")
    [found] = operators([TOKENS, mlp(*residual, activation="none")], arrays).run(None, arrays)
    hidden = arrays["x"].astype(np.float64) @ arrays["w1"] * arrays["s1"] + arrays["b1"]
    expected = (
        hidden @ arrays["w2"] * arrays["s2"] + arrays["b2"] + (arrays["x"] if residual else 0)
    )
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.999


@pytest.mark.parametrize(
    ("name", "array", "sentence"),
    [
        pytest.param("w2", np.zeros((66, 20), np.int8), "to match", id="other inputs"),
        pytest.param("b2", np.ones(19, np.float32), "one bias per output", id="fewer biases"),
        pytest.param("factors", np.ones(71, np.float32), "one factor per output", id="factors"),
        pytest.param("more", np.ones((1, 4, 20), np.float32), "as many numbers", id="residual"),
    ],
)
def test_what_mlp_cannot_do_is_said_in_a_sentence(
    name: str, array: np.ndarray, sentence: str
) -> None:
    arrays = {**mlp_inputs(5, 20, 70), "more": np.ones((1, 5, 20), np.float32), name: array}
    with pytest.raises(Exception, match=sentence):
        operators([TOKENS, mlp("factors", "more")], arrays).run(None, arrays)


def test_layer_norm_and_quantising_in_one_agree_with_onnxruntimes_layer_norm() -> None:
    arrays = mlp_inputs(300, 67, 70)
    arrays |= {"gain": arrays["x"][0, 0] + 1, "shift": arrays["x"][0, 1]}
    linear = helper.make_node(
        "Linear", ["t", "ts", *FIRST], ["result"], domain=DOMAIN, activation="none"
    )
    norm = ["x", "gain", "shift"]
    apart = [
        helper.make_node("LayerNormalization", norm, ["n"], epsilon=1e-6),
        helper.make_node("QuantiseTokens", ["n"], ["t", "ts"], domain=DOMAIN),
        linear,
    ]
    joined = [
        helper.make_node("NormaliseTokens", norm, ["t", "ts"], domain=DOMAIN, epsilon=1e-6),
        linear,
    ]
    [expected] = operators(apart, arrays).run(None, arrays)
    [found] = operators(joined, arrays).run(None, arrays)
    assert np.abs(found - expected).max() < 0.01 * np.abs(expected).max()
    # Where a number lies between two integers, the last bit of a float decides which it becomes.
    assert np.median(np.abs(found - expected)) < 1e-5 * np.abs(expected).max()


def test_layer_norm_wants_a_weight_and_a_bias_for_each_number() -> None:
    arrays = mlp_inputs(5, 20, 70) | {"short": np.ones(19, np.float32)}
    norm = helper.make_node(
        "NormaliseTokens", ["x", "short", "b2"], ["t", "ts"], domain=DOMAIN, epsilon=1e-6
    )
    linear = helper.make_node(
        "Linear", ["t", "ts", *FIRST], ["result"], domain=DOMAIN, activation="none"
    )
    with pytest.raises(Exception, match="one weight and one bias per input"):
        operators([norm, linear], arrays).run(None, arrays)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The stand-in, with a second graph that runs our attention too, and adds none of it."""
    directory = stand_in.make(tmp_path / "model")
    described = manifest.read(directory)
    plain = directory / described.graph
    graph = onnx.load(plain)
    nodes = [
        helper.make_node(
            "Attention", ["rows", "rows", "rows"], ["mixed"], domain=DOMAIN, num_heads=1, scale=1.0
        ),
        helper.make_node("Mul", ["mixed", "zero"], ["none"]),
        helper.make_node("Add", ["rows", "none"], ["seen"]),
    ]
    graph.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(1, np.float32), "zero"))
    position = next(i for i, n in enumerate(graph.graph.node) if "rows" in n.input)
    for node in reversed(nodes):
        graph.graph.node.insert(position, node)
    for user in graph.graph.node[position + len(nodes) :]:
        user.input[:] = ["seen" if name == "rows" else name for name in user.input]
    graph.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    onnx.save(graph, directory / MODEL)
    golden = session.Session(plain)
    engine.record(golden, min(described.resolutions), directory / "golden.npz")
    _describe(directory, described)
    return directory


def _describe(directory: Path, described: Manifest) -> None:
    names = [described.graph, MODEL, "golden.npz"]
    files = manifest.describe(directory, names)
    kernels = (CustomOpsGraph(MODEL, ("Attention",)),)
    written = replace(described, files=files, kernels=kernels, golden="golden.npz")
    manifest.write(written, directory)


def load(model: Path, kernels: str = "auto", described: Manifest | None = None) -> engine.CustomOps:
    with ModelFiles(model, described or manifest.read(model)) as files:
        return engine.select(files, 1, kernels)[1].custom_ops


def test_the_kernels_are_used_where_the_golden_input_comes_out_as_recorded(model: Path) -> None:
    state = load(model)
    assert state.on
    assert custom_ops.variant(["Attention"]) in state.why


def test_where_the_first_graph_fails_the_next_one_is_tried(model: Path) -> None:
    shutil.copyfile(model / MODEL, model / "better.onnx")
    described = manifest.read(model)
    unknown = CustomOpsGraph("better.onnx", ("Attention", "Clairvoyance"))
    broken = CustomOpsGraph("golden.npz", ("Attention",))
    described = replace(described, kernels=(unknown, broken, *described.kernels))
    state = load(model, described=described)
    assert state.on
    assert "Clairvoyance" not in state.why


def test_a_graph_that_fails_when_it_is_run_is_not_used(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = session.Session.run

    def fail(self: session.Session, *arguments: Any) -> Any:
        if self.library is not None:
            raise RuntimeError("a node failed")
        return run(self, *arguments)

    monkeypatch.setattr(session.Session, "run", fail)
    state = load(model)
    assert not state.on
    assert "does not get through" in state.why


def test_kernels_off_takes_the_plain_graph(model: Path) -> None:
    state = load(model, "off")
    assert (state.on, state.why) == (False, "they were switched off with --kernels off.")


@pytest.mark.parametrize("name", ["pooled_embedding", "attention_scores"])
@pytest.mark.parametrize("wrong", [-1.0, np.nan], ids=["negated", "no number"])
def test_another_result_than_the_recorded_one_takes_the_plain_graph(
    model: Path, name: str, wrong: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = session.Session.run

    def spoil(self: session.Session, *arguments: Any) -> Any:
        arrays = run(self, *arguments)
        return arrays if self.library is None else {**arrays, name: arrays[name] * wrong}

    monkeypatch.setattr(session.Session, "run", spoil)
    state = load(model)
    assert not state.on
    assert "golden input" in state.why


def test_a_library_that_is_not_there_takes_the_plain_graph(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(custom_ops, "LIBRARY", model / "nowhere.so")
    assert load(model) == engine.CustomOps(False, "they were not built for this machine.")


def test_a_library_that_is_none_takes_the_plain_graph(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (model.parent / "not_one.so").write_bytes(b"no library")
    monkeypatch.setattr(custom_ops, "LIBRARY", model.parent / "not_one.so")
    assert load(model) == engine.CustomOps(False, "not_one.so cannot be loaded on this machine.")


def test_a_model_without_them_takes_the_plain_graph(tmp_path: Path) -> None:
    state = load(stand_in.make(tmp_path / "model"))
    assert state == engine.CustomOps(False, "the model directory has no graph for them.")
