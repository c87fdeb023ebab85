"""A second graph for the CPUs that have our own operators: the same model over the same weights.

It is made on every machine, whether or not the operators were built there, and never checked for
speed: the sidecar takes it only where its CPU is served and the golden input comes out as recorded.
"""

from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import helper

from build.calibrate import PLAN
from build.checkpoint import PREPROCESSOR, SOURCE, WEIGHTS
from build.export import FLOAT_BYTES
from build.ops import DOMAIN
from build.pipeline import carry
from build.quantise import QUANTISED
from build.reference import geometry
from build.tower import CONFIG
from sidecar import engine
from sidecar.session import Session

KERNELS_GRAPH = "vision_encoder_kernels.onnx"
KERNELS_DOMAIN = "vision.sidecar"
GOLDEN = "golden.npz"


@dataclass(frozen=True)
class Kernels:
    """Writes KERNELS_GRAPH, and what the plain graph makes of the golden input."""

    def __call__(self, source: Path, out: Path) -> None:
        carry(source, out, QUANTISED, f"{QUANTISED}.data", PLAN, FLOAT_BYTES)
        carry(source, out, WEIGHTS, CONFIG, PREPROCESSOR, SOURCE)
        model = onnx.load(source / QUANTISED, load_external_data=False)
        replace_attention(model)
        (out / KERNELS_GRAPH).write_bytes(model.SerializeToString(deterministic=True))
        side = min(geometry(source).resolutions)
        engine.record(Session(source / QUANTISED), side, out / GOLDEN)


def plain_graph(source: Path) -> Path:
    """The one graph of `source` that runs anywhere."""
    (graph,) = (path for path in source.glob("*.onnx") if path.name != KERNELS_GRAPH)
    return graph


def replace_attention(model: onnx.ModelProto) -> None:
    """ONNX Runtime's fused attention becomes ours, in place: same inputs, attributes and result."""
    for node in model.graph.node:
        if node.domain == DOMAIN and node.op_type == "MultiHeadAttention":
            node.domain, node.op_type = KERNELS_DOMAIN, "Attention"
    model.opset_import.append(helper.make_opsetid(KERNELS_DOMAIN, 1))
