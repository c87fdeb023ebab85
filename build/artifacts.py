"""What a build reads and writes: each artefact's name, its files, and the types read from them.

A step writes one artefact, a directory, and reads others where they lie. Only names, formats and
plain values live here: no step, no torch, no ONNX.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from build.errors import BuildError as BuildError  # for all who import it from here
from sidecar.manifest import GRID, Normalisation

Item = TypeVar("Item")


class Artifact(StrEnum):
    """A directory that a step writes; the comment names its files."""

    CHECKPOINT = "checkpoint"  # WEIGHTS, CONFIG, GEOMETRY, SOURCE
    PLAN = "plan"  # how each linear layer is quantised: read_plan
    FLOAT_GRAPH = "float graph"  # FLOAT, and its weights beside it
    QUANTISED_GRAPHS = "quantised graphs"  # QUANTISED, its weights, CUSTOM_OP_GRAPHS over them
    GOLDEN = "golden record"  # GOLDEN_RECORD
    FLAT_LIMITS = "limits for flat images"  # FLAT_LIMITS
    REFERENCE = "reference"  # outputs of the float model: read_outputs
    TEST_REFERENCE = "reference for the test set"  # the same, for images that decide nothing
    REPORT = "report"  # REPORT
    TEST_REPORT = "report on the test set"  # REPORT
    COMPARISON = "report of the recipe that this one is compared with"  # REPORT
    MANIFEST = "manifest"  # manifest.json, and the final REPORT
    ARCHIVE = "archive"  # ZIP, and ZIP_FACTS for the report


class Inputs(Protocol):
    """What a step is given: where the artefacts lie that it reads, and a way to show progress."""

    def __getitem__(self, artifact: Artifact, /) -> Path: ...

    def progress(self, items: Collection[Item], what: str, /) -> Iterator[Item]:
        """The items one by one, while the person sees how many are done."""


class Step(Protocol):
    """A frozen dataclass whose fields are its whole configuration."""

    @property
    def reads(self) -> tuple[Artifact, ...]: ...

    @property
    def writes(self) -> Artifact: ...

    def __call__(self, inputs: Inputs, out: Path, /) -> None:
        """Read the artefacts in `inputs`, write only inside the empty directory `out`."""


# Of CHECKPOINT.
WEIGHTS = "weights.safetensors"
CONFIG = "config.json"  # Transformers' own
GEOMETRY = "geometry.json"
SOURCE = "source.json"

# Of the graphs. Larger tensors lie beside a graph, in a file of its name with DATA added.
FLOAT = "vision_encoder.onnx"
QUANTISED = "vision_encoder_quant.onnx"
DATA = ".data"
# The fastest first, with the custom ops of each. Where a CPU gains by our attention alone, the
# linear layers stay onnxruntime's.
CUSTOM_OP_GRAPHS = {
    "vision_encoder_kernels.onnx": ("Attention", "Linear", "Mlp"),
    "vision_encoder_attention.onnx": ("Attention",),
}

GOLDEN_RECORD = "golden.npz"
FLAT_LIMITS = "flat.json"
REPORT = "report.json"
ZIP = "model.zip"
ZIP_FACTS = "zip.json"
REPORT_HTML = "report.html"  # the same, drawn; written where the model directory is put in place

Projection = Literal["projector", "linear"]

# Packages whose versions decide the bytes of what is built.
TOOLS = ("numpy", "onnx-ir", "onnxruntime", "onnxscript", "pillow", "torch", "transformers")


@dataclass(frozen=True)
class Geometry:
    """What a checkpoint's configuration says of shapes and pixels."""

    patch_size: int  # pixels
    native: int  # side length in pixels
    layers: int
    hidden: int
    text_hidden: int
    normalisation: Normalisation

    @property
    def step(self) -> int:
        """Height and width are multiples of this: 16 patches."""
        return GRID * self.patch_size

    @property
    def resolutions(self) -> tuple[int, ...]:
        """The side lengths, in pixels, that the graph takes."""
        return tuple(range(self.step, self.native + 1, self.step))


def write_geometry(geometry: Geometry, checkpoint: Path) -> None:
    """Write GEOMETRY into the directory."""
    text = json.dumps(asdict(geometry), indent=2) + "\n"
    (checkpoint / GEOMETRY).write_text(text, "utf-8")


def read_geometry(checkpoint: Path) -> Geometry:
    """Read GEOMETRY of the artefact CHECKPOINT."""
    content = json.loads((checkpoint / GEOMETRY).read_text("utf-8"))
    how = content.pop("normalisation")
    how |= {"mean": tuple(how["mean"]), "std": tuple(how["std"])}
    return Geometry(**content, normalisation=Normalisation(**how))


Activations = Literal["per_tensor", "per_token", "float"]


@dataclass(frozen=True)
class Scheme:
    """How a linear layer is quantised.

    Weights are always int8, symmetric, with a scale per output channel. Activations are uint8 with
    a scale and a zero point that are computed at run time, per tensor or per token, or stay float
    (weight-only quantisation). `alpha` is SmoothQuant's migration strength; None: no smoothing.
    """

    activations: Activations
    alpha: float | None


@dataclass(frozen=True)
class QuantisedLinear:
    """A linear layer y = x W + b with W ≈ weight · scale; the zero point of the weights is 0."""

    name: str  # of the module: tower.encoder.layers.3.mlp.fc1
    scheme: Scheme
    error: float  # relative squared error of the output, before GPTQ
    weight: NDArray[np.int8]  # [in, out]
    scale: NDArray[np.float32]  # [out]
    bias: NDArray[np.float32]  # [out]
    # [in], what the graph multiplies the input's channels with: the inverse of SmoothQuant's s.
    # None where s is folded into the module in front of the layer.
    smoothing: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Table:
    """A matrix outside the encoder layers that is stored in 8 bits: values ≈ integers · scale."""

    integers: NDArray[np.int8]
    scale: NDArray[np.float32]  # shaped to multiply the integers


POSITIONS = "positions"  # [hidden, patches]
PROJECTION = "projection"  # [hidden, text_hidden]


@dataclass(frozen=True)
class Plan:
    """Every quantised linear layer, and the LayerNorm parameters that smoothing was folded into.

    `tables`: what stands for POSITIONS and PROJECTION; the lowering rounds those that lack here.
    """

    linears: tuple[QuantisedLinear, ...]
    folded: Mapping[str, NDArray[np.float32]]  # by parameter: tower.….layer_norm1.weight
    tables: Mapping[str, Table] = field(default_factory=dict)


_PLAN, _PLAN_ARRAYS = "plan.json", "plan.safetensors"
_ARRAYS = ("weight", "scale", "bias", "smoothing")


def write_plan(plan: Plan, out: Path) -> None:
    """Write the artefact PLAN: schemes as JSON for people, arrays as safetensors."""
    entries: list[dict[str, Any]] = []
    arrays: dict[str, NDArray[Any]] = {f"folded {name}": a for name, a in plan.folded.items()}
    for name, table in plan.tables.items():
        arrays |= {f"integers {name}": table.integers, f"scale of {name}": table.scale}
    for linear in plan.linears:
        entries.append({"name": linear.name, **asdict(linear.scheme), "error": linear.error})
        for kind in _ARRAYS:
            if (array := getattr(linear, kind)) is not None:
                arrays[f"{kind} {linear.name}"] = np.ascontiguousarray(array)
    (out / _PLAN).write_text(json.dumps(entries, indent=2) + "\n", "utf-8")
    save_file(arrays, out / _PLAN_ARRAYS)


def read_plan(directory: Path) -> Plan:
    """Read the artefact PLAN."""
    arrays = load_file(directory / _PLAN_ARRAYS)
    linears = []
    for entry in json.loads((directory / _PLAN).read_text("utf-8")):
        name = entry["name"]
        given: Any = {kind: arrays.get(f"{kind} {name}") for kind in _ARRAYS}
        scheme = Scheme(entry["activations"], entry["alpha"])
        linears.append(QuantisedLinear(name, scheme, entry["error"], **given))
    folded = {
        name.removeprefix("folded "): array
        for name, array in arrays.items()
        if name.startswith("folded ")
    }
    tables = {
        name: Table(arrays[f"integers {name}"], arrays[f"scale of {name}"])
        for name in (POSITIONS, PROJECTION)
        if f"integers {name}" in arrays
    }
    return Plan(tuple(linears), folded, tables)


def write_flat_limits(limits: Mapping[int, float], out: Path) -> None:
    """Write FLAT_LIMITS: the spread of norms up to which an image is flat, by side length."""
    (out / FLAT_LIMITS).write_text(json.dumps(limits) + "\n", "utf-8")


def read_flat_limits(directory: Path) -> Mapping[int, float]:
    """Read the artefact FLAT_LIMITS."""
    limits = json.loads((directory / FLAT_LIMITS).read_text("utf-8"))
    return {int(side): float(limit) for side, limit in limits.items()}


Outputs = dict[str, dict[str, NDArray[np.float32]]]  # by image, by output; batches of one


def write_outputs(outputs: Outputs, out: Path, side: int) -> None:
    """Write what a model gave for images of `side` pixels."""
    arrays = {
        f"{image}/{output}": np.ascontiguousarray(array)
        for image, by_output in outputs.items()
        for output, array in by_output.items()
    }
    save_file(arrays, out / f"{side}.safetensors")


def read_outputs(directory: Path) -> dict[int, Outputs]:
    """By side, what `write_outputs` wrote; the smallest side first."""
    found: dict[int, Outputs] = {}
    for file in sorted(directory.glob("*.safetensors"), key=lambda file: int(file.stem)):
        outputs = found[int(file.stem)] = {}
        for name, array in load_file(file).items():
            image, _, output = name.rpartition("/")
            outputs.setdefault(image, {})[output] = array
    return found


def plain_graph(directory: Path) -> Path:
    """The one graph of a directory of graphs that runs anywhere, without custom ops."""
    (graph,) = (path for path in directory.glob("*.onnx") if path.name not in CUSTOM_OP_GRAPHS)
    return graph


def data_of(graph: Path) -> Path:
    """The file of the graph's larger tensors; a small graph may have none."""
    return graph.with_name(graph.name + DATA)


def size(graph: Path) -> int:
    """Bytes of a graph and of its data."""
    return sum(file.stat().st_size for file in (graph, data_of(graph)) if file.exists())
