"""The lowering to our custom ops (sidecar/kernels): fused attention and linear layers in 8 bits.

The graphs are made on every machine, whether or not the library was built there, and never timed:
the sidecar uses one only where its CPU is served and the golden input comes out as recorded.
"""

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
