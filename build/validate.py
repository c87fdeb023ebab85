"""The sidecar's own session against the PyTorch reference, on real images; with bars to clear."""

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from build import images
from build.artifacts import (
    CUSTOM_OP_GRAPHS,
    FLOAT,
    REPORT,
    Artifact,
    BuildError,
    Inputs,
    Outputs,
    plain_graph,
    read_geometry,
    read_outputs,
    size,
)
from build.metrics import Change, Figure, NotFinite, changes, compare, plots
from build.testset import Unseen
from sidecar import custom_ops
from sidecar.custom_ops import CustomOpsUnavailable
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
    """Reads CHECKPOINT, FLOAT_GRAPH, REFERENCE and `graphs`, writes `report`.

    It measures the plain graph and, where this machine runs it, the fastest with custom ops, on the
    images of REFERENCE and at its sizes. With `test`, on those of TEST_REFERENCE.
    """

    graphs: Artifact = Artifact.QUANTISED_GRAPHS
    bars: Bars = field(default_factory=Bars)
    report: Artifact = Artifact.REPORT
    test: Unseen | None = None

    @property
    def writes(self) -> Artifact:
        return self.report

    @property
    def reads(self) -> tuple[Artifact, ...]:
        needed = (Artifact.CHECKPOINT, Artifact.FLOAT_GRAPH, self.reference, self.graphs)
        return tuple(dict.fromkeys(needed))

    @property
    def reference(self) -> Artifact:
        return Artifact.TEST_REFERENCE if self.test else Artifact.REFERENCE

    def __call__(self, inputs: Inputs, out: Path) -> None:
        graph = plain_graph(inputs[self.graphs])
        how = read_geometry(inputs[Artifact.CHECKPOINT]).normalisation
        reference = read_outputs(inputs[self.reference])
        picture = self.test.load().__getitem__ if self.test else images.bundled
        sessions = {"plain": Session(graph)}
        try:
            fastest, kernels = best_graph(inputs[self.graphs])
            sessions["kernels"] = Session(fastest, custom_ops=True)
        except CustomOpsUnavailable as error:
            kernels = str(error)
        figures: dict[str, dict[int, dict[str, Figure]]] = {name: {} for name in sessions}
        drawn: dict[str, dict[str, object]] = {name: {} for name in sessions}
        changed: dict[str, dict[int, list[Change]]] = {name: {} for name in sessions}
        for side, expected in reference.items():
            actual: dict[str, Outputs] = {name: {} for name in sessions}
            for name in inputs.progress(expected, f"images at {side} pixels"):
                pixels = images.pixel_values(picture(name), side, side, how)
                for engine, session in sessions.items():
                    actual[engine][name] = session.run(pixels)
            for engine, outputs in actual.items():
                try:
                    figures[engine][side] = dict(compare(expected, outputs))
                    drawn[engine][str(side)] = plots(expected, outputs)
                except NotFinite as error:
                    raise BuildError(f"the {engine} graph at {side} pixels: {error}") from error
                changed[engine][side] = changes(expected, outputs)
        report = {
            "resolutions": _plain(figures["plain"]),
            "kernels": {"here": kernels, "resolutions": _plain(figures.get("kernels", {}))},
            "changed_neighbours": {
                engine: {
                    str(side): [asdict(change) for change in each] for side, each in by.items()
                }
                for engine, by in changed.items()
            },
            "bars": asdict(self.bars),
            "images": sorted({name for outputs in reference.values() for name in outputs}),
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
