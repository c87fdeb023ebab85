"""The lowering to our custom ops (sidecar/kernels): fused attention and linear layers in 8 bits.

The graphs are made on every machine, whether or not the library was built there, and never timed:
the sidecar uses one only where its CPU is served and the golden input comes out as recorded.
"""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from build import graph
from build.graph import initializer, insert_before, is_stored

DOMAIN = "vision.sidecar"
CONTRIB = "com.microsoft"  # of ONNX Runtime's own fused operators
GELUS = ("Gelu", "FastGelu")


class Linears:
    """Each quantised linear layer, with its bias and GELU, becomes one node.

    Its input is quantised per token, whatever the plan says for the plain graph; explicit smoothing
    happens on the way, and layers with one input share what comes out.
    """

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.quantised: dict[tuple[ir.Value, ir.Value | None], ir.Node] = {}

    def __call__(
        self,
        node: ir.Node,
        name: str,
        weight: NDArray[np.int8],  # [in, out]
        scale: NDArray[np.float32],  # [out]
        smoothing: NDArray[np.float32] | None,  # [in]
    ) -> None:
        """Replace the MatMul `node`, and what follows it alone: its bias, its GELU."""
        x, factors = node.inputs[0], None
        if smoothing is not None:
            factors = initializer(self.model, f"{name}.smoothing", smoothing)
        tokens = self.quantised.get((x, factors))
        if tokens is None:
            tokens = self.quantised[x, factors] = insert_before(
                node,
                "QuantiseTokens",
                (x,) if factors is None else (x, factors),
                f"{name}/QuantiseTokens",
                domain=DOMAIN,
                outputs=2,
            )
        weights = initializer(self.model, f"{name}.weight_int8", weight)
        scales = initializer(self.model, f"{name}.weight_scale", scale)
        last, bias, activation = epilogue(node)
        layer = insert_before(
            last,
            "Linear",
            (*tokens.outputs, weights, scales, *([bias] if bias is not None else [])),
            f"{name}/Linear",
            {"activation": activation},
            domain=DOMAIN,
        )
        graph.replace(self.model, last, layer.outputs[0])


def attention(model: ir.Model) -> None:
    """ONNX Runtime's fused attention becomes ours, in place: same inputs, attributes and result."""
    for node in model.graph:
        if node.domain == CONTRIB and node.op_type == "MultiHeadAttention":
            node.domain, node.op_type = DOMAIN, "Attention"


def fuse(model: ir.Model) -> None:
    """What stands between linear layers joins them: residuals, LayerNorms, and fc1 with fc2."""
    for node in list(model.graph):
        add_residual(model, node)
    for node in list(model.graph):
        normalise_tokens(model, node)
    for node in list(model.graph):
        join_mlp(model, node)


def add_residual(model: ir.Model, node: ir.Node) -> None:
    """An Add of a Linear that nobody else reads becomes an input of the Linear."""
    if node.op_type != "Add":
        return
    for product, residual in (node.inputs, reversed(node.inputs)):
        layer = sole_source(product, "Linear")
        if layer is None or is_stored(residual) or residual.shape != product.shape:
            continue
        fused = insert_before(
            node,
            "Linear",
            (*padded(layer.inputs, 5), residual),
            layer.name,
            layer.attributes,
            domain=DOMAIN,
        )
        graph.replace(model, node, fused.outputs[0])
        break


def normalise_tokens(model: ir.Model, node: ir.Node) -> None:
    """QuantiseTokens of a LayerNorm that nobody else reads becomes NormaliseTokens."""
    if node.op_type != "QuantiseTokens" or len(node.inputs) > 1:
        return
    norm = sole_source(node.inputs[0], "LayerNormalization")
    if norm is None or len(norm.inputs) < 3 or norm.attributes.get_int("axis", -1) != -1:
        return
    fused = insert_before(
        node,
        "NormaliseTokens",
        norm.inputs,
        f"{norm.name}/NormaliseTokens",
        {"epsilon": norm.attributes.get_float("epsilon", 1e-5)},
        domain=DOMAIN,
        outputs=2,
    )
    ir.convenience.replace_all_uses_with(node.outputs, fused.outputs)
    model.graph.remove((node, norm), safe=True)


def join_mlp(model: ir.Model, node: ir.Node) -> None:
    """A Linear of a Linear becomes Mlp. The numbers between them are never stored as floats."""
    if node.op_type != "Linear" or node.attributes["activation"].as_string() != "none":
        return
    tokens = sole_source(node.inputs[0], "QuantiseTokens")
    first = sole_source(tokens.inputs[0], "Linear") if tokens is not None else None
    if tokens is None or first is None:
        return
    *one, residual_of_one = padded(first.inputs, 6)
    two = padded(node.inputs, 6)
    bias, residual = two[4:]
    if one[4] is None or bias is None or residual_of_one is not None:
        return  # Mlp always has both biases, and adds no residual in between
    factors = padded(tokens.inputs, 2)[1]
    fused = insert_before(
        node,
        "Mlp",
        (*one, *two[2:5], factors, residual),
        node.name.replace("/Linear", "/Mlp"),
        first.attributes,
        domain=DOMAIN,
    )
    graph.replace(model, node, fused.outputs[0])


def sole_source(value: ir.Value, op: str) -> ir.Node | None:
    """The node of that type that makes `value`, if one other node alone reads what it makes."""
    node = value.producer()
    if node is None or node.op_type != op or any(out.is_graph_output() for out in node.outputs):
        return None
    readers = {reader for output in node.outputs for reader in output.consumers()}
    return node if len(readers) == 1 else None


def padded(inputs: Sequence[ir.Value | None], count: int) -> tuple[ir.Value | None, ...]:
    """So many inputs; those that are absent are None."""
    return (*inputs, *[None] * (count - len(inputs)))


def epilogue(node: ir.Node) -> tuple[ir.Node, ir.Value | None, str]:
    """What follows a MatMul alone: the last node of it; its bias, if any; its GELU, or none."""
    last, bias, activation = node, None, "none"
    users = node.outputs[0].consumers()
    if len(users) == 1 and users[0].op_type == "Add":
        for term in users[0].inputs:
            if is_stored(term) and term.shape is not None and len(term.shape) == 1:
                last, bias = users[0], term
    users = last.outputs[0].consumers()
    if len(users) == 1 and users[0].domain == CONTRIB and users[0].op_type in GELUS:
        last, activation = users[0], users[0].op_type
    return last, bias, activation
