"""The quantised graph once more, with operators of ours: the same model over the same weights.

These graphs are made on every machine, whether or not the operators were built there, and never
checked for speed: the sidecar takes one only where its CPU is served and the golden input comes out
as recorded.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from build.calibrate import PLAN
from build.checkpoint import PREPROCESSOR, SOURCE, WEIGHTS
from build.export import FLOAT_BYTES, number_values
from build.ops import DOMAIN, GELUS
from build.pipeline import carry
from build.quantise import QUANTISED
from build.reference import geometry
from build.tower import CONFIG
from sidecar import custom_ops, engine
from sidecar.custom_ops import CustomOpsUnavailable
from sidecar.session import Session

# The fastest first. Where a CPU gains by our attention alone, the linear layers stay onnxruntime's.
KERNELS_GRAPHS = {
    "vision_encoder_kernels.onnx": ("Attention", "Linear"),
    "vision_encoder_attention.onnx": ("Attention",),
}
KERNELS_DOMAIN = "vision.sidecar"
GOLDEN = "golden.npz"


@dataclass(frozen=True)
class Kernels:
    """Writes KERNELS_GRAPHS, and what the plain graph makes of the golden input."""

    def __call__(self, source: Path, out: Path) -> None:
        carry(source, out, QUANTISED, f"{QUANTISED}.data", PLAN, FLOAT_BYTES)
        carry(source, out, WEIGHTS, CONFIG, PREPROCESSOR, SOURCE)
        for name, operators in KERNELS_GRAPHS.items():
            model = ir.load(out / QUANTISED)
            for operator in operators:
                REPLACEMENTS[operator](model)
            RemoveUnusedNodesPass()(model)
            model.opset_imports[KERNELS_DOMAIN] = 1
            number_values(model)
            ir.save(model, out / name)  # weights stay where they are
        side = min(geometry(source).resolutions)
        engine.record(Session(source / QUANTISED), side, out / GOLDEN)


def plain_graph(source: Path) -> Path:
    """The one graph of `source` that runs anywhere."""
    (graph,) = (path for path in source.glob("*.onnx") if path.name not in KERNELS_GRAPHS)
    return graph


def best_graph(source: Path) -> tuple[Path, str]:
    """The fastest graph of `source` that this CPU serves, and how. Raises CustomOpsUnavailable."""
    missing = CustomOpsUnavailable("the recipe has no graph for them.")
    for name, operators in KERNELS_GRAPHS.items():
        if (source / name).exists():
            try:
                return source / name, f"{custom_ops.variant(operators)}: {' and '.join(operators)}"
            except CustomOpsUnavailable as error:
                missing = error
    raise missing


def replace_attention(model: ir.Model) -> None:
    """ONNX Runtime's fused attention becomes ours, in place: same inputs, attributes and result."""
    for node in model.graph:
        if node.domain == DOMAIN and node.op_type == "MultiHeadAttention":
            node.domain, node.op_type = KERNELS_DOMAIN, "Attention"


def replace_linear(model: ir.Model) -> None:
    """Each layer that multiplies integers, with its bias and GELU, becomes one node of ours.

    Its input is quantised token by token, whatever the plain graph does; the smoothing in front of
    it is done on the way, and layers with one input share what comes out.
    """
    quantised: dict[tuple[ir.Value, ir.Value | None], ir.Node] = {}
    for product in [node for node in model.graph if node.op_type == "MatMulInteger"]:
        x, factors = _unquantised(product)
        weights = product.inputs[1]
        scales, *multiplied = _chain(product)
        name = product.name.rpartition("/")[0]
        tokens = quantised.get((x, factors))
        if tokens is None:
            tokens = quantised[x, factors] = ir.node(
                "QuantiseTokens",
                (x,) if factors is None else (x, factors),
                domain=KERNELS_DOMAIN,
                num_outputs=2,
                name=f"{name}/QuantiseTokens",
            )
            product.graph.insert_before(product, tokens)
        steps = next(value for value in scales.producer().inputs if _constant(value))
        last, bias, activation = _epilogue(multiplied[-1])
        layer = ir.node(
            "Linear",
            (*tokens.outputs, weights, steps, *([bias] if bias is not None else [])),
            attributes={"activation": activation},
            domain=KERNELS_DOMAIN,
            name=f"{name}/Linear",
        )
        (result,), (old,) = layer.outputs, last.outputs
        result.shape, result.type = old.shape, old.type
        last.graph.insert_before(last, layer)
        ir.convenience.replace_all_uses_with(old, result)


REPLACEMENTS: dict[str, Callable[[ir.Model], None]] = {
    "Attention": replace_attention,
    "Linear": replace_linear,
}


def _unquantised(product: ir.Node) -> tuple[ir.Value, ir.Value | None]:
    """What `Quantise` began with, and the factors of its channels where it smoothed explicitly."""
    x = product.inputs[0].producer().inputs[0]  # of DynamicQuantizeLinear
    if x.producer().name.endswith(".quantise/Div"):  # by the token's size
        x = x.producer().inputs[0]
    producer = x.producer()
    if producer is not None and producer.name.endswith("/Mul_smoothing"):
        return producer.inputs[0], producer.inputs[1]
    return x, None


def _chain(product: ir.Node) -> Iterator[ir.Value]:
    """The product's scales, then what `Quantise` made of it: the result, and that times tokens."""
    (cast,) = product.outputs[0].consumers()
    (result,) = cast.outputs[0].consumers()
    yield result.inputs[1]
    yield result.outputs[0]
    users = result.outputs[0].consumers()
    if len(users) == 1 and users[0].name.endswith("/Mul_token"):
        yield users[0].outputs[0]


def _epilogue(value: ir.Value) -> tuple[ir.Node, ir.Value | None, str]:
    """The last node of what follows a layer alone: its bias, if any, and its GELU, or none."""
    last, bias, activation = value.producer(), None, "none"
    users = value.consumers()
    if len(users) == 1 and users[0].op_type == "Add":
        for term in users[0].inputs:
            if _constant(term) and term.shape is not None and len(term.shape) == 1:
                last, bias = users[0], term
    users = last.outputs[0].consumers()
    if len(users) == 1 and users[0].domain == DOMAIN and users[0].op_type in GELUS.values():
        last, activation = users[0], users[0].op_type
    return last, bias, activation


def _constant(value: ir.Value) -> bool:
    """Whether it is stored, be it in 16 bits."""
    producer = value.producer()
    if producer is not None and producer.op_type == "Cast":
        (value,) = producer.inputs
    return bool(value.is_initializer())
