"""The lowerings on graphs of a few nodes: each change by itself, run by ONNX Runtime."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray

from build import custom_ops, graph
from build.artifacts import Activations, Plan, QuantisedLinear, Scheme
from build.quantise import halve_vectors, halved, quantise, symmetric
from sidecar.custom_ops import LIBRARY, CustomOpsUnavailable, variant

IN, OUT = 64, 128
SMOOTHING = np.linspace(0.1, 10, IN, dtype=np.float32)


def normal(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def linear(
    activations: Activations, smoothing: NDArray[np.float32] | None = None, seed: int = 0
) -> QuantisedLinear:
    weight = np.clip(np.rint(60 * normal(IN, OUT, seed=seed)), -127, 127).astype(np.int8)
    scale = np.linspace(0.001, 0.01, OUT, dtype=np.float32)
    bias = normal(OUT, seed=seed)
    return QuantisedLinear("fc", Scheme(activations, None), 0.0, weight, scale, bias, smoothing)


def model(name: str = "fc", gelu: bool = False) -> ir.Model:
    """x W + b, and a GELU after that; the weights are to be replaced by the plan's."""
    x = ir.Value(name="x", shape=ir.Shape(["n", "t", IN]), type=ir.TensorType(ir.DataType.FLOAT))
    weight = stored(f"{name}.weight", np.zeros((IN, OUT), np.float32))
    bias = stored(f"{name}.bias", np.zeros(OUT, np.float32))
    product = ir.node("MatMul", (x, weight), name=f"{name}/MatMul")
    nodes = [product, ir.node("Add", (product.outputs[0], bias), name=f"{name}/Add")]
    if gelu:
        nodes.append(ir.node("Gelu", nodes[-1].outputs, domain=custom_ops.CONTRIB, name="Gelu"))
    (y,) = nodes[-1].outputs
    y.name, y.shape, y.type = "y", ir.Shape(["n", "t", OUT]), ir.TensorType(ir.DataType.FLOAT)
    opsets = {"": 18, custom_ops.CONTRIB: 1}
    whole = ir.Graph([x], [y], nodes=nodes, initializers=[weight, bias], opset_imports=opsets)
    return ir.Model(whole, ir_version=10)


def stored(name: str, array: NDArray[Any]) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    return ir.Value(
        name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
    )


def run(model: ir.Model, path: Path, x: NDArray[np.float32]) -> NDArray[np.float32]:
    graph.save(model, path)
    options = onnxruntime.SessionOptions()
    if LIBRARY.exists():
        options.register_custom_ops_library(str(LIBRARY))
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    result: NDArray[np.float32] = session.run(None, {"x": x})[0]
    return result


@pytest.mark.parametrize("smoothing", [None, SMOOTHING])
@pytest.mark.parametrize("activations", ["per_tensor", "per_token", "float"])
def test_a_planned_layer_computes_what_its_record_says(
    activations: Activations, smoothing: NDArray[np.float32] | None, tmp_path: Path
) -> None:
    layer = linear(activations, smoothing)
    lowered = model()
    quantise(lowered, Plan((layer,), {}))
    x = normal(1, 5, IN)
    factors = 1 if smoothing is None else smoothing
    expected = (x * factors) @ (layer.weight * layer.scale) + layer.bias
    error = np.abs(run(lowered, tmp_path / "model.onnx", x) - expected).max()
    assert error < (3e-2 if activations != "float" else 1e-3) * np.abs(expected).max()


def test_tokens_of_different_size_need_scales_of_their_own(tmp_path: Path) -> None:
    x = normal(1, 2, IN)
    x[:, 1] /= 1000
    lost = {}
    kinds: tuple[Activations, ...] = ("per_tensor", "per_token")
    for kind in kinds:
        layer = replace(linear(kind), bias=np.zeros(OUT, np.float32))
        lowered = model()
        quantise(lowered, Plan((layer,), {}))
        expected = x @ (layer.weight * layer.scale)
        result = run(lowered, tmp_path / f"{kind}.onnx", x)
        lost[kind] = np.abs(result - expected)[:, 1].max() / np.abs(expected[:, 1]).max()
    assert lost["per_token"] < 0.05
    assert lost["per_tensor"] > 0.3


@pytest.mark.parametrize("gelu", [False, True])
def test_a_custom_op_takes_the_layer_with_its_bias_and_gelu(gelu: bool) -> None:
    layer = linear("per_tensor", SMOOTHING)
    lowered = model(gelu=gelu)
    quantise(lowered, Plan((layer,), {}), ("Attention", "Linear"))
    nodes = {node.op_type: node for node in lowered.graph if node.op_type != "Cast"}
    assert nodes.keys() == {"QuantiseTokens", "Linear"}
    op = nodes["Linear"]
    assert op.attributes["activation"].as_string() == ("Gelu" if gelu else "none")
    assert len(op.inputs) == 5  # tokens and their scales, weight, scale, bias
    assert op.outputs[0].name == "y"


def mlp(branch: bool = False) -> tuple[ir.Model, Plan]:
    """x + fc2(GELU(fc1(LayerNorm(x)))); with `branch`, others read what is in between too."""
    shape = ir.Shape(["n", "t", IN])
    x = ir.Value(name="x", shape=shape, type=ir.TensorType(ir.DataType.FLOAT))
    names = {"norm.weight": IN, "norm.bias": IN, "fc1.bias": IN, "fc2.bias": IN}
    vectors = {name: stored(name, normal(size, seed=3)) for name, size in names.items()}
    weights = {f"fc{i}.weight": stored(f"fc{i}.weight", normal(IN, IN)) for i in (1, 2)}
    attributes = {"axis": -1, "epsilon": 1e-6}
    norm = ir.node(
        "LayerNormalization", (x, vectors["norm.weight"], vectors["norm.bias"]), attributes
    )
    nodes, last = [norm], norm.outputs[0]
    for name in ("fc1", "fc2"):
        nodes.append(ir.node("MatMul", (last, weights[f"{name}.weight"]), name=f"{name}/MatMul"))
        nodes.append(ir.node("Add", (nodes[-1].outputs[0], vectors[f"{name}.bias"])))
        if name == "fc1":
            nodes.append(ir.node("Gelu", nodes[-1].outputs, domain=custom_ops.CONTRIB))
        (last,) = nodes[-1].outputs
        last.shape, last.type = shape, x.type
    nodes.append(ir.node("Add", (x, last)))
    if branch:
        for value in (norm.outputs[0], nodes[3].outputs[0], last):
            nodes.append(ir.node("Add", (nodes[-1].outputs[0], value)))
    (y,) = nodes[-1].outputs
    y.name, y.shape, y.type = "y", shape, x.type
    opsets = {"": 18, custom_ops.CONTRIB: 1}
    stored_values = [*vectors.values(), *weights.values()]
    whole = ir.Graph([x], [y], nodes=nodes, initializers=stored_values, opset_imports=opsets)
    layers = []
    for i in (1, 2):
        whole_layer = linear("per_token", SMOOTHING if i == 2 else None, seed=i)
        layers.append(
            replace(
                whole_layer,
                name=f"fc{i}",
                weight=whole_layer.weight[:, :IN],
                scale=whole_layer.scale[:IN],
                bias=whole_layer.bias[:IN],
            )
        )
    return ir.Model(whole, ir_version=10), Plan(tuple(layers), {})


def test_norm_mlp_and_residual_become_two_custom_ops() -> None:
    ours, plan = mlp()
    quantise(ours, plan, ("Attention", "Linear", "Mlp"))
    kinds = [node.op_type for node in ours.graph if node.op_type != "Cast"]
    assert kinds == ["NormaliseTokens", "Mlp"]
    assert len(list(ours.graph)[-1].inputs) == 10
    assert ours.graph.outputs[0].name == "y"


def test_fused_custom_ops_give_what_the_plain_graph_gives(tmp_path: Path) -> None:
    try:
        variant(("Linear", "Mlp"))
    except CustomOpsUnavailable as error:
        pytest.skip(str(error))
    plain, plan = mlp()
    ours, _ = mlp()
    quantise(plain, plan)
    quantise(ours, plan, ("Attention", "Linear", "Mlp"))
    x = normal(1, 5, IN)
    expected = run(plain, tmp_path / "plain.onnx", x)
    found = run(ours, tmp_path / "ours.onnx", x)
    assert np.abs(found - expected).max() < 0.03 * np.abs(expected).max()


def test_what_others_read_too_is_not_fused_away() -> None:
    ours, plan = mlp(branch=True)
    quantise(ours, plan, ("Attention", "Linear", "Mlp"))
    kinds = {node.op_type for node in ours.graph if node.op_type != "Cast"}
    assert kinds == {"LayerNormalization", "QuantiseTokens", "Linear", "Add"}


def test_a_layer_of_the_plan_that_the_graph_lacks_is_named() -> None:
    with pytest.raises(ValueError, match=r"no layer for fc\.weight"):
        quantise(model("another"), Plan((linear("float"),), {}))


def test_a_matrix_that_the_plan_does_not_name_is_quantised_weight_only(tmp_path: Path) -> None:
    lowered = model()
    weight = normal(IN, OUT, seed=2)
    lowered.graph.initializers["fc.weight"].const_value = ir.tensor(weight, name="fc.weight")
    quantise(lowered, Plan((), {}))
    x = normal(1, 5, IN)
    error = np.abs(run(lowered, tmp_path / "model.onnx", x) - x @ weight).max()
    assert 0 < error < 0.02 * np.abs(x @ weight).max()


def test_graphs_over_one_set_of_weights_must_agree_in_them(tmp_path: Path) -> None:
    layer, other = linear("per_tensor"), linear("per_tensor", seed=1)
    plain, ours = model(), model()
    quantise(plain, Plan((layer,), {}))
    quantise(ours, Plan((other,), {}), ("Linear",))
    graph.save(plain, tmp_path / "plain.onnx")
    with pytest.raises(ValueError, match=r"plain\.onnx differ in"):
        graph.save_sharing(ours, tmp_path / "ours.onnx", tmp_path / "plain.onnx")


def test_symmetric_integers_by_hand() -> None:
    table = symmetric(np.array([[1.27, 0], [-0.635, 0]], np.float32), axis=1)
    assert table.integers.tolist() == [[127, 0], [-64, 0]]  # -63.5 rounds to even
    assert table.scale.tolist() == [[pytest.approx(0.01), 1]]


def vector(*values: float) -> NDArray[np.float32]:
    return np.array(values, np.float32)


@pytest.mark.parametrize(
    ("values", "added", "fits"),
    [
        pytest.param(vector(1, -2, 0.5, 0), False, True, id="exact"),
        pytest.param(vector(1 + 2**-11), False, True, id="rounded by less than a thousandth"),
        pytest.param(vector(1e-5), False, False, id="a small scale loses its digits"),
        pytest.param(vector(1e-5), True, True, id="a small bias may"),
        pytest.param(vector(1, 1e-9), False, False, id="one of many vanishes"),
        pytest.param(vector(70000), True, False, id="too large for 16 bits"),
        pytest.param(vector(65504), True, True, id="the largest of 16 bits"),
    ],
)
def test_vectors_are_stored_in_16_bits_where_they_lose_little(
    values: NDArray[np.float32], added: bool, fits: bool
) -> None:
    half = halved(values, added)
    assert (half is not None) == fits
    if half is not None:
        assert half.dtype == np.float16
        floor = 2.0**-14 if added else 0
        assert (np.abs(half - values) <= 2.0**-10 * np.maximum(np.abs(values), floor)).all()


def test_only_vectors_that_are_worth_a_node_are_halved(tmp_path: Path) -> None:
    small = model()
    small.graph.initializers["fc.bias"].const_value = ir.tensor(
        np.full(OUT, 0.1, np.float32), name="fc.bias"
    )
    halve_vectors(small)
    assert "fc.bias_half" in small.graph.initializers
    assert "fc.bias" not in small.graph.initializers
    assert small.graph.initializers["fc.weight"].const_value.dtype == ir.DataType.FLOAT
    x = np.zeros((1, 2, IN), np.float32)
    assert run(small, tmp_path / "model.onnx", x) == pytest.approx(0.1, rel=2**-10)
