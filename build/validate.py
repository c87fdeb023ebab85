"""The sidecar's own session against the PyTorch reference, on real images; with bars to clear."""

import json
import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import SupportsFloat

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from build import images
from build.checkpoint import PREPROCESSOR, SOURCE
from build.errors import BuildError
from build.export import FLOAT_BYTES, OUTPUTS
from build.kernels import GOLDEN, KERNELS_GRAPHS, best_graph, plain_graph
from build.pipeline import carry, progress
from build.reference import Projection, geometry, load
from build.tower import CONFIG
from sidecar.custom_ops import CustomOpsUnavailable
from sidecar.session import Session, saturates

REPORT = "report.json"
CLEAR = 0.005  # a nearest neighbour this much nearer than the runner-up must stay the nearest

Array = NDArray[np.float32]


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
class Figure:
    """One of the figures of `Bars`, the output that it is about, and the image that is worst."""

    value: float
    output: str
    image: str


@dataclass(frozen=True)
class Validate:
    """Writes REPORT, on the plain graph of `source` and, where they run here, on the kernels."""

    projection: Projection = "projector"
    dynamic: bool = True  # the graph takes other resolutions than the native one
    bars: Bars = field(default_factory=Bars)
    images: tuple[str, ...] = images.VALIDATION

    def __call__(self, source: Path, out: Path) -> None:
        graph = plain_graph(source)
        shape = geometry(source)
        encoder = load(source, self.projection)
        sessions = {"plain": Session(graph)}
        try:
            with_kernels, kernels = best_graph(source)
            sessions["kernels"] = Session(with_kernels, custom_ops=True)
        except CustomOpsUnavailable as error:
            kernels = str(error)
        loaded = {name: images.bundled(name) for name in self.images}
        sides = [shape.native]
        if self.dynamic and shape.native % (2 * shape.step) == 0:
            sides.insert(0, shape.native // 2)
        found: dict[str, dict[int, dict[str, Figure]]] = {name: {} for name in sessions}
        for side in sides:
            expected: dict[str, dict[str, Array]] = {}
            actual: dict[str, dict[str, dict[str, Array]]] = {name: {} for name in sessions}
            for name, rgb in progress(loaded.items(), f"images at {side} pixels"):
                pixels = images.pixel_values(rgb, side, side, shape.normalisation)
                with torch.inference_mode():
                    outputs = encoder(torch.from_numpy(pixels))
                expected[name] = {
                    output: tensor.numpy() for output, tensor in zip(OUTPUTS, outputs, strict=True)
                }
                for engine, session in sessions.items():
                    actual[engine][name] = session.run(pixels)
            for engine, outputs_by_image in actual.items():
                found[engine][side] = dict(compare(expected, outputs_by_image))
        data = graph.with_name(graph.name + ".data")
        report = {
            "resolutions": _plain(found["plain"]),
            "kernels": {"here": kernels, "resolutions": _plain(found.get("kernels", {}))},
            "bars": asdict(self.bars),
            "images": list(self.images),
            "bytes": {
                "float": int((source / FLOAT_BYTES).read_text()),
                "model": sum(file.stat().st_size for file in (graph, data) if file.exists()),
            },
            "cpu": cpu(),
        }
        for engine, figures_by_side in found.items():
            for side, figures in figures_by_side.items():
                hold(self.bars, figures, f"{side} pixels on the {engine} graph")
        (out / REPORT).write_text(json.dumps(report, indent=2) + "\n", "utf-8")
        carry(source, out, graph.name, data.name, *KERNELS_GRAPHS, GOLDEN)
        carry(source, out, CONFIG, PREPROCESSOR, SOURCE)


def compare(
    expected: Mapping[str, Mapping[str, Array]], actual: Mapping[str, Mapping[str, Array]]
) -> Iterator[tuple[str, Figure]]:
    """The figures of `Bars`, from the outputs for each image by name; each is of a batch of one."""
    names = list(expected)
    for name in names:
        for output in OUTPUTS:
            if not np.isfinite(actual[name][output]).all():
                raise BuildError(f"the model's {output} for {name} has values that are no numbers.")
    tokens = [cosine(expected[name][OUTPUTS[0]][0], actual[name][OUTPUTS[0]][0]) for name in names]
    joined = np.concatenate(tokens)
    yield "token_cosine_mean", _worst(joined.mean(), OUTPUTS[0], names, [t.mean() for t in tokens])
    lowest = [np.percentile(t, 1) for t in tokens]
    yield "token_cosine_p1", _worst(np.percentile(joined, 1), OUTPUTS[0], names, lowest)
    yield "token_cosine_min", _worst(joined.min(), OUTPUTS[0], names, [t.min() for t in tokens])

    heat = [pearson(expected[name][OUTPUTS[1]][0], actual[name][OUTPUTS[1]][0]) for name in names]
    yield "heatmap_r_mean", _worst(np.mean(heat), OUTPUTS[1], names, heat)
    yield "heatmap_r_min", _worst(np.min(heat), OUTPUTS[1], names, heat)

    before = np.concatenate([expected[name][OUTPUTS[2]] for name in names])
    after = np.concatenate([actual[name][OUTPUTS[2]] for name in names])
    pooled = list(cosine(before, after))
    yield "pooled_cosine_min", _worst(np.min(pooled), OUTPUTS[2], names, pooled)
    kept, clear = neighbours(similarities(before), similarities(after))
    yield "neighbours_kept", _worst(np.mean(kept), OUTPUTS[2], names, list(kept))
    share = np.mean(kept[clear]) if clear.any() else 1.0
    yield "clear_neighbours_kept", _worst(share, OUTPUTS[2], names, list(kept | ~clear))
    rows = [kendall(a, b) for a, b in zip(similarities(before), similarities(after), strict=True)]
    upper = np.triu_indices(len(names), 1)
    tau = kendall(similarities(before)[upper], similarities(after)[upper])
    yield "kendall_tau", _worst(tau, OUTPUTS[2], names, rows)


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


def cosine(a: Array, b: Array) -> NDArray[np.float64]:
    """Row by row; 1 where both are zero."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    size = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    same = (a == b).all(axis=-1)
    result: NDArray[np.float64] = np.where(
        same, 1.0, (a * b).sum(axis=-1) / np.where(size == 0, 1, size)
    )
    return result


def pearson(a: Array, b: Array) -> float:
    """Of two heatmaps; 1 where they are equal, 0 where only one is flat."""
    return float(cosine((a - a.mean())[None], (b - b.mean())[None])[0])


def similarities(pooled: Array) -> NDArray[np.float64]:
    """Cosine of each pair of rows."""
    rows = pooled.astype(np.float64)
    rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)
    return np.asarray(rows @ rows.T)


def neighbours(
    before: NDArray[np.float64], after: NDArray[np.float64]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """For each image: is its nearest neighbour kept, and was it clearly the nearest?"""
    before, after = before.copy(), after.copy()
    np.fill_diagonal(before, -np.inf)
    np.fill_diagonal(after, -np.inf)
    ordered = np.sort(before, axis=1)
    kept = before.argmax(axis=1) == after.argmax(axis=1)
    return kept, ordered[:, -1] - ordered[:, -2] >= CLEAR


def kendall(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Kendall's tau-a: agreeing less disagreeing pairs, of all pairs."""
    upper = np.triu_indices(len(a), 1)
    signs = np.sign(a[:, None] - a[None])[upper] * np.sign(b[:, None] - b[None])[upper]
    return float(signs.mean())


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


def _worst(value: SupportsFloat, output: str, names: list[str], each: ArrayLike) -> Figure:
    return Figure(float(value), output, names[int(np.argmin(each))])
