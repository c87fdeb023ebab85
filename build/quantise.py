"""Float graph and plan to 8-bit graphs: the step, and the lowering to ONNX Runtime's own operators.

One graph change, one small function. Nothing is decided here: the plan says how each layer is
quantised.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from build import custom_ops, graph
from build.artifacts import (
    CUSTOM_OP_GRAPHS,
    FLOAT,
    POSITIONS,
    PROJECTION,
    QUANTISED,
    Artifact,
    Inputs,
    Plan,
    QuantisedLinear,
    Table,
    read_plan,
)
from build.graph import initializer, insert_before, is_stored

SMALL_VECTOR = 64  # numbers: fewer of them are not worth a node
Array = NDArray[np.float32]


@dataclass(frozen=True)
class Seed:
    """The original recipe, to the letter: ONNX Runtime's dynamic quantiser with uint8 weights."""

    reads: ClassVar = (Artifact.FLOAT_GRAPH,)
    writes: ClassVar = Artifact.QUANTISED_GRAPHS

    def __call__(self, inputs: Inputs, out: Path) -> None:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        source = inputs[Artifact.FLOAT_GRAPH] / FLOAT
        with tempfile.TemporaryDirectory(dir=out) as scratch:
            target = Path(scratch) / QUANTISED
            quantize_dynamic(source, target, weight_type=QuantType.QUInt8)
            graph.save(ir.load(target), out / QUANTISED)


@dataclass(frozen=True)
class Quantise:
    """Reads FLOAT_GRAPH and PLAN, writes QUANTISED_GRAPHS: one for any machine, and custom ops'."""

    reads: ClassVar = (Artifact.FLOAT_GRAPH, Artifact.PLAN)
    writes: ClassVar = Artifact.QUANTISED_GRAPHS

    def __call__(self, inputs: Inputs, out: Path) -> None:
        source = inputs[Artifact.FLOAT_GRAPH] / FLOAT
        plan = read_plan(inputs[Artifact.PLAN])
        model = ir.load(source)
        quantise(model, plan)
        graph.save(model, out / QUANTISED)
        for name, operators in CUSTOM_OP_GRAPHS.items():
            model = ir.load(source)
            quantise(model, plan, operators)
            graph.save_sharing(model, out / name, out / QUANTISED)


def quantise(model: ir.Model, plan: Plan, custom: tuple[str, ...] = ()) -> None:
    """Lower `model` in place: `custom` names the custom ops that may be used, none by default.

    What the plan does not name (patches, positions, the projection) is quantised weight-only.
    """
    vectors = {f"{linear.name}.bias": linear.bias for linear in plan.linears} | dict(plan.folded)
    for name, array in vectors.items():
        if name in model.graph.initializers:
            model.graph.initializers[name].const_value = ir.tensor(array, name=name)
    planned = {f"{linear.name}.weight": linear for linear in plan.linears}
    plain, ours = Linears(model), custom_ops.Linears(model)
    for node in list(model.graph):
        if node.op_type == "MatMul" and is_stored(node.inputs[1]):
            linear = planned.pop(node.inputs[1].name, None)
            if linear is None:
                table = plan.tables.get(PROJECTION) or symmetric(stored(node, 1), axis=1)
                weight_only(model, node, 1, table)
            elif linear.scheme.activations == "float":
                smooth(model, node, linear)
                weight_only(model, node, 1, Table(linear.weight, linear.scale))
            elif "Linear" in custom:
                ours(node, linear.name, linear.weight, linear.scale, linear.smoothing)
            else:
                plain(node, linear)
    if planned:
        raise ValueError(f"the graph has no layer for {min(planned)} of the plan.")
    for node in list(model.graph):
        if node.op_type == "Conv" and is_stored(node.inputs[1]):
            weight_only(model, node, 1, symmetric(stored(node, 1), axis=0))
        elif node.op_type == "Reshape" and is_stored(node.inputs[0]):  # the positions
            table = plan.tables.get(POSITIONS) or symmetric(stored(node, 0), axis=0)
            weight_only(model, node, 0, table)
    if "Attention" in custom:
        custom_ops.attention(model)
    if "Mlp" in custom:
        custom_ops.fuse(model)
    if custom:
        model.opset_imports[custom_ops.DOMAIN] = 1
    halve_vectors(model)


class Linears:
    """x W as a product of integers. ONNX Runtime fuses these nodes into MatMulIntegerToFloat."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        # By input and scheme, what was quantised already: q, k and v share theirs.
        self.quantised: dict[tuple[ir.Value, str], Activation] = {}

    def __call__(self, node: ir.Node, linear: QuantisedLinear) -> None:
        """Replace the MatMul `node`."""
        smooth(self.model, node, linear)
        x, name, kind = node.inputs[0], linear.name, linear.scheme.activations
        activation = self.quantised.get((x, kind))
        if activation is None:
            activation = self.quantised[x, kind] = quantise_activation(self.model, node, x, kind)
        weight = initializer(self.model, f"{name}.weight_int8", linear.weight)
        scale = initializer(self.model, f"{name}.weight_scale", linear.scale)
        product = insert_before(
            node,
            "MatMulInteger",
            (activation.integers, weight, activation.zero_point),
            f"{name}/MatMulInteger",
        )
        (number,) = insert_before(
            node, "Cast", product.outputs, f"{name}/Cast", {"to": ir.DataType.FLOAT}
        ).outputs
        (scales,) = insert_before(
            node, "Mul", (activation.scale, scale), f"{name}/Mul_scales"
        ).outputs
        (y,) = insert_before(node, "Mul", (number, scales), f"{name}/Mul_result").outputs
        if activation.token is not None:
            (y,) = insert_before(node, "Mul", (y, activation.token), f"{name}/Mul_token").outputs
        graph.replace(self.model, node, y)


@dataclass(frozen=True)
class Activation:
    """A layer's input in 8 bits: the integers, their scale and zero point.

    `token` [n, tokens, 1] is what each token was divided by first; None: nothing.
    """

    integers: ir.Value
    scale: ir.Value
    zero_point: ir.Value
    token: ir.Value | None


def quantise_activation(model: ir.Model, node: ir.Node, x: ir.Value, kind: str) -> Activation:
    """Quantise `x` in front of `node`: per tensor, or per token after dividing by its largest."""
    producer = x.producer()
    name = (producer.name if producer is not None else "input") + ".quantise"
    token = None
    if kind == "per_token":
        last = initializer(model, "last_axis", np.array([-1], np.int64))
        floor = initializer(model, "smallest_token", np.array(1e-8, np.float32))
        (size,) = insert_before(node, "Abs", (x,), f"{name}/Abs").outputs
        (top,) = insert_before(
            node, "ReduceMax", (size, last), f"{name}/ReduceMax", {"keepdims": 1}
        ).outputs
        (token,) = insert_before(node, "Max", (top, floor), f"{name}/Max").outputs
        (x,) = insert_before(node, "Div", (x, token), f"{name}/Div").outputs
    quantised = insert_before(
        node, "DynamicQuantizeLinear", (x,), f"{name}/DynamicQuantizeLinear", outputs=3
    )
    integers, scale, zero_point = quantised.outputs
    return Activation(integers, scale, zero_point, token)


def smooth(model: ir.Model, node: ir.Node, linear: QuantisedLinear) -> None:
    """Multiply the channels of the input of `node` where the plan could not fold the factors."""
    if linear.smoothing is not None:
        factors = initializer(model, f"{linear.name}.smoothing", linear.smoothing)
        product = insert_before(
            node, "Mul", (node.inputs[0], factors), f"{linear.name}/Mul_smoothing"
        )
        node.replace_input_with(0, product.outputs[0])


def weight_only(model: ir.Model, node: ir.Node, position: int, table: Table) -> None:
    """Store one constant input in 8 bits. ONNX Runtime dequantises it once, while loading."""
    value = node.inputs[position]
    name = value.name
    weight = initializer(model, f"{name}_int8", table.integers)
    scales = initializer(model, f"{name}_scale", table.scale)
    (number,) = insert_before(
        node, "Cast", (weight,), f"{name}/Cast", {"to": ir.DataType.FLOAT}
    ).outputs
    product = insert_before(node, "Mul", (number, scales), f"{name}/Mul")
    node.replace_input_with(position, product.outputs[0])
    if not value.uses():
        del model.graph.initializers[name]


def halve_vectors(model: ir.Model) -> None:
    """Store biases, scales and the LayerNorms' parameters in 16 bits, where they lose little.

    ONNX Runtime widens them once, while loading. They are a hundredth of the weights, and what the
    scale per output channel costs more than one per tensor.
    """
    narrow: dict[ir.Value, ir.Value] = {}
    for value in list(model.graph.initializers.values()):
        array = value.const_value.numpy()
        if array.dtype == np.float32 and array.ndim == 1 and array.size >= SMALL_VECTOR:
            half = halved(array, added=value.name.endswith(".bias"))
            if half is not None:
                narrow[value] = initializer(model, f"{value.name}_half", half)
    for node in list(model.graph):
        for value in node.inputs:
            if value in narrow:
                (whole,) = insert_before(
                    node, "Cast", (narrow[value],), f"{value.name}/Cast", {"to": ir.DataType.FLOAT}
                ).outputs
                whole.shape, whole.type = value.shape, value.type
                ir.convenience.replace_all_uses_with(value, whole)
                del model.graph.initializers[value.name]


def halved(array: Array, added: bool) -> NDArray[np.float16] | None:
    """The vector in 16 bits, None where a value loses more than 2⁻¹⁰ of itself.

    `added`: the vector is a bias. Below 2⁻¹⁴ its absolute error is what counts.
    """
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    floor = 2.0**-14 if added else 0
    error = np.abs(half.astype(np.float32) - array)
    return half if (error <= 2.0**-10 * np.maximum(np.abs(array), floor)).all() else None


def symmetric(values: Array, axis: int) -> Table:
    """Integers from -127 to 127 with one scale per index of `axis`, shaped to multiply them."""
    others = tuple(number for number in range(values.ndim) if number != axis)
    scale = np.abs(values).max(axis=others, keepdims=True) / 127
    scale = np.where(scale == 0, 1, scale).astype(np.float32)
    return Table(np.clip(np.rint(values / scale), -127, 127).astype(np.int8), scale)


def stored(node: ir.Node, position: int) -> NDArray[Any]:
    """The values of a constant input."""
    array: NDArray[Any] = node.inputs[position].const_value.numpy()
    return array
