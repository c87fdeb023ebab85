"""Float graph to 8-bit graph. One graph change, one small function.

Weights become signed 8-bit integers with a scale per output channel, those that `Calibrate` found
where it was at work. Activations are quantised while running, where it measured that they bear it.
"""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from safetensors.numpy import load_file

from build.calibrate import PLAN, ROUNDED
from build.checkpoint import PREPROCESSOR, SOURCE, WEIGHTS
from build.export import FLOAT_BYTES, GRAPH, save
from build.pipeline import carry
from build.tower import CONFIG

QUANTISED = "vision_encoder_quant.onnx"
VECTOR = 64  # numbers: for fewer of them it is not worth a node
Array = NDArray[np.float32]


@dataclass(frozen=True)
class Seed:
    """The original recipe, to the letter: ONNX Runtime's dynamic quantiser with uint8 weights."""

    def __call__(self, source: Path, out: Path) -> None:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        with tempfile.TemporaryDirectory(dir=out) as scratch:
            target = Path(scratch) / QUANTISED
            quantize_dynamic(source / GRAPH, target, weight_type=QuantType.QUInt8)
            save(ir.load(target), out / QUANTISED)
        carry(source, out, WEIGHTS, CONFIG, PREPROCESSOR, SOURCE, FLOAT_BYTES)


@dataclass(frozen=True)
class Quantise:
    """Every linear layer as PLAN and ROUNDED say; what they do not name, weights alone."""

    def __call__(self, source: Path, out: Path) -> None:
        model = ir.load(source / GRAPH)
        plan = json.loads((source / PLAN).read_text("utf-8"))
        quantise(model, plan, load_file(source / ROUNDED))
        save(model, out / QUANTISED)
        carry(source, out, PLAN, FLOAT_BYTES, WEIGHTS, CONFIG, PREPROCESSOR, SOURCE)


def quantise(
    model: ir.Model, plan: Mapping[str, Mapping[str, Any]], tensors: Mapping[str, NDArray[Any]]
) -> None:
    """Quantise `model` in place; `tensors` are what `Calibrate` wrote, by their names here."""
    for name, array in tensors.items():  # of biases and LayerNorms
        if name in model.graph.initializers:
            model.graph.initializers[name].const_value = ir.tensor(array, name=name)
    inputs: dict[tuple[ir.Value, bool], Activation] = {}
    for node in list(model.graph):
        if node.op_type == "MatMul" and _constant(node.inputs[1]):
            name = node.name.rpartition("/")[0]
            if name not in plan:
                weights_only(model, node, 1, axis=1)
                continue
            weight = tensors[f"{name}.weight_int8"], tensors[f"{name}.weight_scale"]
            if f"{name}.smoothing" in tensors:
                smooth(model, node, tensors[f"{name}.smoothing"])
            if plan[name]["activations"] == "float":
                weights_only(model, node, 1, axis=1, given=weight)
            else:
                per_token = plan[name]["activations"] == "int8 per token"
                linear(model, node, per_token, weight, inputs)
    for node in list(model.graph):
        if node.op_type == "Conv" and _constant(node.inputs[1]):
            weights_only(model, node, 1, axis=0)
        elif node.op_type == "Reshape" and _constant(node.inputs[0]):  # the positions
            weights_only(model, node, 0, axis=0)
    halve_vectors(model)


def halve_vectors(model: ir.Model) -> None:
    """Store biases, scales and the LayerNorms' parameters in 16 bits, where they bear it.

    ONNX Runtime unfolds them once, while loading. They are a hundredth of the weights, and what the
    scale per output channel takes more than one per tensor.
    """
    for value in list(model.graph.initializers.values()):
        array = value.const_value.numpy()
        if array.dtype != np.float32 or array.ndim != 1 or array.size < VECTOR:
            continue
        with np.errstate(over="ignore"):
            half = array.astype(np.float16)
        # A bias is added: what is lost of a small one matters as little as it is small.
        least = 2.0**-14 if value.name.endswith(".bias") else 0
        if (np.abs(half - array) <= 2.0**-10 * np.maximum(np.abs(array), least)).all():
            stored = _initializer(model, f"{value.name}_half", half)
            first = next(node for node in model.graph if value in node.inputs)
            cast = _before(
                first, "Cast", (stored,), f"{value.name}/Cast", {"to": ir.DataType.FLOAT}
            )
            (whole,) = cast.outputs
            whole.shape, whole.type = value.shape, value.type
            ir.convenience.replace_all_uses_with(value, whole)
            del model.graph.initializers[value.name]


def smooth(model: ir.Model, node: ir.Node, factor: Array) -> None:
    """Multiply the channels of what goes into `node`, which has nothing linear in front of it."""
    name = node.name.rpartition("/")[0]
    value = _initializer(model, f"{name}.smoothing", factor)
    product = _before(node, "Mul", (node.inputs[0], value), f"{name}/Mul_smoothing")
    node.replace_input_with(0, product.outputs[0])


@dataclass(frozen=True)
class Activation:
    """A layer's input in 8 bits: the integers, their scale and zero point; each token's divisor."""

    integers: ir.Value
    scale: ir.Value
    zero_point: ir.Value
    token: ir.Value | None


def linear(
    model: ir.Model,
    node: ir.Node,
    per_token: bool,
    weight: tuple[NDArray[np.int8], Array],
    inputs: dict[tuple[ir.Value, bool], Activation],
) -> None:
    """x W as a product of integers. ONNX Runtime fuses these nodes into MatMulIntegerToFloat.

    `inputs` holds what was quantised already: q, k and v share theirs.
    """
    x = node.inputs[0]
    assert x is not None
    name = node.name.rpartition("/")[0]
    integers, scale = weight
    found = inputs.get((x, per_token))
    if found is None:
        found = inputs[x, per_token] = _activation(model, node, x, per_token)
    weights = _initializer(model, f"{name}.weight_int8", integers)
    weight_scale = _initializer(model, f"{name}.weight_scale", scale)
    product = _before(
        node, "MatMulInteger", (found.integers, weights, found.zero_point), f"{name}/MatMulInteger"
    )
    number = _before(
        node, "Cast", product.outputs, f"{name}/Cast", attributes={"to": ir.DataType.FLOAT}
    )
    scales = _before(node, "Mul", (found.scale, weight_scale), f"{name}/Mul_scales")
    result = _before(node, "Mul", (number.outputs[0], scales.outputs[0]), f"{name}/Mul_result")
    if found.token is not None:
        result = _before(node, "Mul", (result.outputs[0], found.token), f"{name}/Mul_token")
    _replace(model, node, result.outputs[0])


def weights_only(
    model: ir.Model,
    node: ir.Node,
    position: int,
    axis: int,
    given: tuple[NDArray[np.int8], Array] | None = None,
) -> None:
    """Store one constant input in 8 bits. ONNX Runtime unfolds it once, while loading."""
    value = node.inputs[position]
    assert value is not None
    integers, scale = given or signed(value.const_value.numpy(), axis)
    name = value.name
    stored = _initializer(model, f"{name}_int8", integers)
    scales = _initializer(model, f"{name}_scale", scale)
    number = _before(node, "Cast", (stored,), f"{name}/Cast", attributes={"to": ir.DataType.FLOAT})
    product = _before(node, "Mul", (number.outputs[0], scales), f"{name}/Mul")
    node.replace_input_with(position, product.outputs[0])
    if not value.uses():
        del model.graph.initializers[value.name]


def signed(values: Array, axis: int) -> tuple[NDArray[np.int8], Array]:
    """Symmetric 8-bit integers with one scale per index of `axis`, shaped to multiply them."""
    others = tuple(number for number in range(values.ndim) if number != axis)
    scale = np.abs(values).max(axis=others, keepdims=True) / 127
    scale = np.where(scale == 0, 1, scale).astype(np.float32)
    return np.clip(np.rint(values / scale), -127, 127).astype(np.int8), scale


def _activation(model: ir.Model, node: ir.Node, x: ir.Value, per_token: bool) -> Activation:
    producer = x.producer()
    name = (producer.name if producer is not None else "input") + ".quantise"
    token = None
    if per_token:
        last = _initializer(model, "last_axis", np.array([-1], np.int64))
        floor = _initializer(model, "smallest_token", np.array(1e-8, np.float32))
        size = _before(node, "Abs", (x,), f"{name}/Abs")
        top = _before(
            node, "ReduceMax", (size.outputs[0], last), f"{name}/ReduceMax", {"keepdims": 1}
        )
        (token,) = _before(node, "Max", (top.outputs[0], floor), f"{name}/Max").outputs
        (x,) = _before(node, "Div", (x, token), f"{name}/Div").outputs
    quantised = _before(node, "DynamicQuantizeLinear", (x,), f"{name}/DynamicQuantizeLinear", n=3)
    integers, scale, zero_point = quantised.outputs
    return Activation(integers, scale, zero_point, token)


def _before(
    node: ir.Node,
    op: str,
    inputs: Any,
    name: str,
    attributes: dict[str, Any] | None = None,
    n: int = 1,
) -> ir.Node:
    made = ir.node(op, inputs, attributes=attributes, num_outputs=n, name=name)
    node.graph.insert_before(node, made)
    return made


def _initializer(model: ir.Model, name: str, array: NDArray[Any]) -> ir.Value:
    if name in model.graph.initializers:
        return model.graph.initializers[name]
    tensor = ir.tensor(np.ascontiguousarray(array), name=name)
    value = ir.Value(
        name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    model.graph.initializers[name] = value
    return value


def _replace(model: ir.Model, node: ir.Node, result: ir.Value) -> None:
    (old,) = node.outputs
    result.shape, result.type = old.shape, old.type
    weight = node.inputs[1]
    if old.is_graph_output():  # its name is the contract's
        result.name, old.name = old.name, f"{old.name}.float"
    ir.convenience.replace_all_uses_with(old, result, replace_graph_outputs=True)
    model.graph.remove(node, safe=True)
    if weight is not None and not weight.uses():
        del model.graph.initializers[weight.name]


def _constant(value: ir.Value | None) -> bool:
    return value is not None and value.is_initializer()
