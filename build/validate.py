"""The sidecar's own session against the PyTorch reference, on real images; with bars to clear."""

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import ClassVar

import torch

from build import images
from build.artifacts import (
    CUSTOM_OP_GRAPHS,
    FLOAT,
    REPORT,
    Artifact,
    BuildError,
    Inputs,
    Projection,
    plain_graph,
    read_geometry,
    size,
)
from build.metrics import Array, Figure, NotFinite, compare, plots
from build.reference import load
from sidecar import custom_ops
from sidecar.custom_ops import CustomOpsUnavailable
from sidecar.job import OUTPUTS
from sidecar.session import Session, saturates


@dataclass(frozen=True)
class Bars:
    """The least that a model may reach, at each resolution; None is not held against it."""

    token_cosine_mean: float | None = None
    token_cosine_p1: float | None = None
    token_cosine_min: float | None = None
    pooled_cosine_min: float | None = None
    heatmap_r_mean: float | None = None
    heatmap_r_min: float | None = None
    neighbours_kept: float | None = None
    clear_neighbours_kept: float | None = None
    kendall_tau: float | None = None


@dataclass(frozen=True)
class Validate:
    """Reads CHECKPOINT, FLOAT_GRAPH and `graphs`, writes REPORT.

    It measures the plain graph and, where this machine runs it, the fastest with custom ops.
    """

    projection: Projection = "projector"
    graphs: Artifact = Artifact.QUANTISED_GRAPHS
    dynamic: bool = True  # the graph takes other resolutions than the native one
    bars: Bars = field(default_factory=Bars)
    images: tuple[str, ...] = images.VALIDATION

    writes: ClassVar = Artifact.REPORT

    @property
    def reads(self) -> tuple[Artifact, ...]:
        return tuple(dict.fromkeys((Artifact.CHECKPOINT, Artifact.FLOAT_GRAPH, self.graphs)))

    def __call__(self, inputs: Inputs, out: Path) -> None:
        graph = plain_graph(inputs[self.graphs])
        shape = read_geometry(inputs[Artifact.CHECKPOINT])
        encoder = load(inputs[Artifact.CHECKPOINT], self.projection)
        sessions = {"plain": Session(graph)}
        try:
            fastest, kernels = best_graph(inputs[self.graphs])
            sessions["kernels"] = Session(fastest, custom_ops=True)
        except CustomOpsUnavailable as error:
            kernels = str(error)
        pictures = {name: images.bundled(name) for name in self.images}
        sides = [shape.native]
        if self.dynamic and shape.native % (2 * shape.step) == 0:
            sides.insert(0, shape.native // 2)
        figures: dict[str, dict[int, dict[str, Figure]]] = {name: {} for name in sessions}
        drawn: dict[str, dict[str, object]] = {name: {} for name in sessions}
        for side in sides:
            expected: dict[str, dict[str, Array]] = {}
            actual: dict[str, dict[str, dict[str, Array]]] = {name: {} for name in sessions}
            for name, rgb in inputs.progress(pictures.items(), f"images at {side} pixels"):
                pixels = images.pixel_values(rgb, side, side, shape.normalisation)
                with torch.inference_mode():
                    outputs = encoder(torch.from_numpy(pixels))
                expected[name] = {
                    output: tensor.numpy() for output, tensor in zip(OUTPUTS, outputs, strict=True)
                }
                for engine, session in sessions.items():
                    actual[engine][name] = session.run(pixels)
            for engine, by_image in actual.items():
                try:
                    figures[engine][side] = dict(compare(expected, by_image))
                    drawn[engine][str(side)] = plots(expected, by_image)
                except NotFinite as error:
                    raise BuildError(f"the {engine} graph at {side} pixels: {error}") from error
        report = {
            "resolutions": _plain(figures["plain"]),
            "kernels": {"here": kernels, "resolutions": _plain(figures.get("kernels", {}))},
            "bars": asdict(self.bars),
            "images": list(self.images),
            "bytes": {
                "float": size(inputs[Artifact.FLOAT_GRAPH] / FLOAT),
                "model": size(graph),
            },
            "cpu": cpu(),
            "plots": drawn,
        }
        for engine, by_side in figures.items():
            for side, named in by_side.items():
                hold(self.bars, named, f"{side} pixels on the {engine} graph")
        (out / REPORT).write_text(json.dumps(report, indent=2) + "\n", "utf-8")


def best_graph(graphs: Path) -> tuple[Path, str]:
    """The fastest graph of a directory that this CPU serves, and how.

    Raises CustomOpsUnavailable.
    """
    missing = CustomOpsUnavailable("the recipe has no graph for them.")
    for name, operators in CUSTOM_OP_GRAPHS.items():
        if (graphs / name).exists():
            try:
                return graphs / name, f"{custom_ops.variant(operators)}: {' and '.join(operators)}"
            except CustomOpsUnavailable as error:
                missing = error
    raise missing


def hold(bars: Bars, figures: Mapping[str, Figure], where: str) -> None:
    """Raises BuildError for the first bar that is missed."""
    for name, bar in asdict(bars).items():
        figure = figures[name]
        if bar is not None and figure.value < bar:
            raise BuildError(
                f"expected {name} of at least {bar} at {where}, found {figure.value:.6f} "
                f"({bar - figure.value:.6f} below): {figure.output} is worst for {figure.image}. "
                "Calibrate with images like yours (--calibrate), or lower the bar (--bar)."
            )


def cpu() -> dict[str, object]:
    """What of this machine the figures depend on."""
    flags: set[str] = set()
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("flags"):
                flags = set(line.partition(":")[2].split())
                break
    known = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8")
    return {
        "machine": platform.machine(),
        "features": [name for name in known if name in flags],
        "saturates": saturates(),
    }


def _plain(found: Mapping[int, Mapping[str, Figure]]) -> dict[str, dict[str, dict[str, object]]]:
    return {
        str(side): {name: asdict(figure) for name, figure in figures.items()}
        for side, figures in found.items()
    }
