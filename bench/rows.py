"""The rows of the benchmark: which engine runs which file, and how. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Row:
    """`engine` is one of `engines.ENGINES` or `node`, `model` one of `models.MODELS`."""

    name: str
    title: str
    engine: str
    model: str
    options: dict[str, str] = field(default_factory=dict)


ROWS = (
    Row("seed", "seed recipe, onnxruntime", "onnxruntime", "seed"),
    Row("seed-node", "seed recipe, onnxruntime-node", "node", "seed"),
    Row("float-plain", "float, plain graph, onnxruntime", "onnxruntime", "plain"),
    Row("float", "float recipe, sidecar", "sidecar", "float", {"kernels": "off"}),
    Row("torch", "float, PyTorch", "torch", "checkpoint"),
    Row("openvino", "OpenVINO, NNCF int8", "openvino", "nncf"),
    Row(
        "openvino-bf16",
        "OpenVINO, NNCF int8, bf16 hint",
        "openvino",
        "nncf",
        {"INFERENCE_PRECISION_HINT": "bf16"},
    ),
    Row(
        "openvino-weights",
        "OpenVINO, weight-only int8, bf16 hint",
        "openvino",
        "weight-only",
        {"INFERENCE_PRECISION_HINT": "bf16"},
    ),
    Row(
        "openvino-float",
        "OpenVINO, float, bf16 hint",
        "openvino",
        "openvino-float",
        {"INFERENCE_PRECISION_HINT": "bf16"},
    ),
    Row(
        "default", "default recipe, sidecar, kernels off", "sidecar", "default", {"kernels": "off"}
    ),
    Row("kernels", "default recipe, sidecar", "sidecar", "default", {"kernels": "auto"}),
)


def choose(names: Sequence[str]) -> tuple[Row, ...]:
    """The rows of these names in the table's order; all without a name. Raises ValueError."""
    known = {row.name for row in ROWS}
    strange = sorted(set(names) - known)
    if strange:
        raise ValueError(f"expected rows of {', '.join(sorted(known))}; {strange[0]} came.")
    return tuple(row for row in ROWS if not names or row.name in names)
