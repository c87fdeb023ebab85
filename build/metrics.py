"""The figures of fidelity: how far outputs agree with the reference's.

Pure: arrays in, numbers out. Every figure of the reports comes from here, and tests hold each
against known answers.
"""

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import SupportsFloat

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from sidecar.job import OUTPUTS

CLEAR = 0.005  # a nearest neighbour that leads the runner-up by this much in cosine is a clear one

Array = NDArray[np.float32]
Outputs = Mapping[str, Mapping[str, Array]]  # by image, by output; batches of one


class NotFinite(ValueError):
    """An output has NaN or infinity, which no figure describes."""


@dataclass(frozen=True)
class Figure:
    """A figure, the output that it is about, and the image that is worst."""

    value: float
    output: str
    image: str


def compare(expected: Outputs, actual: Outputs) -> Iterator[tuple[str, Figure]]:
    """By name, the figures of a report; each output is of a batch of one, by image and by name.

    Raises NotFinite.
    """
    names = list(expected)
    for name in names:
        for output in OUTPUTS:
            if not np.isfinite(actual[name][output]).all():
                raise NotFinite(f"{output} of {name} holds NaN or infinity.")
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


def plots(
    expected: Mapping[str, Mapping[str, Array]], actual: Mapping[str, Mapping[str, Array]]
) -> dict[str, object]:
    """What the report draws, as plain values: how many tokens lie how far from the reference (log10
    of 1 - cosine), and both heatmaps of the image whose heatmap is worst.
    """
    tokens = [
        cosine(expected[name][OUTPUTS[0]][0], actual[name][OUTPUTS[0]][0]) for name in expected
    ]
    edges = np.arange(-8, 0.51, 0.25)
    distance = np.log10(np.clip(1 - np.concatenate(tokens), 10.0 ** edges[0], None))
    counts, _ = np.histogram(distance, edges)
    r = {
        name: pearson(expected[name][OUTPUTS[1]][0], actual[name][OUTPUTS[1]][0]) for name in actual
    }
    worst = min(r, key=lambda name: r[name])
    return {
        "token_distance": {"edges": edges.tolist(), "counts": counts.tolist()},
        "worst": {
            "image": worst,
            "reference": expected[worst][OUTPUTS[1]][0].round(4).tolist(),
            "quantised": actual[worst][OUTPUTS[1]][0].round(4).tolist(),
        },
    }


def cosine(a: Array, b: Array) -> NDArray[np.float64]:
    """Of each row of `a` with the same row of `b`; 1 where the two are equal, zeros included."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    size = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    same = (a == b).all(axis=-1)
    result: NDArray[np.float64] = np.where(
        same, 1.0, (a * b).sum(axis=-1) / np.where(size == 0, 1, size)
    )
    return result


def pearson(a: Array, b: Array) -> float:
    """Pearson's r of two heatmaps; 1 where both are flat, 0 where only one is."""
    flat = np.ptp(a) == 0, np.ptp(b) == 0
    if any(flat):
        return float(all(flat))
    with warnings.catch_warnings():  # of nearly flat ones
        warnings.simplefilter("ignore")
        return float(stats.pearsonr(a.astype(np.float64), b.astype(np.float64)).statistic)


def similarities(pooled: Array) -> NDArray[np.float64]:
    """The cosine of each pair of rows: [n, size] to [n, n]."""
    rows = pooled.astype(np.float64)
    rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)
    return np.asarray(rows @ rows.T)


def neighbours(
    before: NDArray[np.float64], after: NDArray[np.float64]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """For each image: is its nearest neighbour unchanged, and was it clearly the nearest before?

    Both are similarities [n, n]; what an image has with itself does not count.
    """
    before, after = before.copy(), after.copy()
    np.fill_diagonal(before, -np.inf)
    np.fill_diagonal(after, -np.inf)
    ordered = np.sort(before, axis=1)
    kept = before.argmax(axis=1) == after.argmax(axis=1)
    return kept, ordered[:, -1] - ordered[:, -2] >= CLEAR


@dataclass(frozen=True)
class Change:
    """An image whose nearest neighbour changed, and by how much the old one had led the new one."""

    image: str
    before: str
    after: str
    lead: float  # in cosine, before quantisation; what changes by less than CLEAR was a close call


def changes(expected: Outputs, actual: Outputs) -> list[Change]:
    """Every image whose nearest neighbour changed, the clearest loss first."""
    names = list(expected)
    before, after = (
        similarities(np.concatenate([outputs[name][OUTPUTS[2]] for name in names]))
        for outputs in (expected, actual)
    )
    np.fill_diagonal(before, -np.inf)
    np.fill_diagonal(after, -np.inf)
    nearest = zip(names, before.argmax(axis=1), after.argmax(axis=1), before, strict=True)
    changed = [
        Change(name, names[old], names[new], float(row[old] - row[new]))
        for name, old, new, row in nearest
        if old != new
    ]
    return sorted(changed, key=lambda change: -change.lead)


def kendall(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Kendall's tau-b of two rankings; where one is constant, 1 if they are equal and 0 if not."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return float(np.array_equal(a, b))
    return float(stats.kendalltau(a, b).statistic)


def _worst(value: SupportsFloat, output: str, names: list[str], each: ArrayLike) -> Figure:
    return Figure(float(value), output, names[int(np.argmin(each))])
