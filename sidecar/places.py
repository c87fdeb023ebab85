"""Where two images look alike: regions of an image's tokens, and pairs of regions. Arrays only.

A case keeps 16 regions, 4 x 4, each the mean of 4 x 4 tokens, in a *basis* fitted on a collection's
own regions: the strongest principal components, whitened with shrinkage like the vectors. A query
has all its tokens, so windows of many sizes and places in it are compared with those regions.

A *placement* says where the match would lie in the query: a square, which may be smaller than the
query or reach beyond it. One placement explains all pairs of two images, so many weak similarities
add up to one clear answer (a generalised Hough transform).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from sidecar.quantised import Floats
from sidecar.whitening import SHRINKAGE, principal_components

GRID = 16  # tokens a side
SIDE = 4  # regions a side
REGIONS = SIDE * SIDE
BASIS_AT = 64  # cases
BASIS_DIMS = 384
LEAST_CASES = 16  # fewer say nothing about what is usual
BACKGROUND = 48  # other cases that tell what is usual
MOST_PAIRS = 5

SIZES = tuple(2 * 2 ** (i / 4) for i in range(9))  # tokens a side of a window: 2 to 8
STEP = 4  # windows begin a quarter of their size apart
EDGE = 2  # and the first half a window before the image
LEAST_WEIGHT = 2.0  # regions that lie in the query
LEAST_SCORE = 3.5
LEAST_MEAN_SCORE = 2.0
LEAST_MARGIN = 0.2  # to the best placement that is another one
SAME = 0.12  # of the larger image's side: placements closer than this are one
WHOLE = 0.7  # a match at most this large lies in the query with all of its regions
LEAST_VISIBLE = 0.75  # of a window that is shown
LEAST_LIFT = 1.5  # spreads
LEAST_SPREAD = np.float32(0.01)  # of cosines

Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two boxes (top, left, bottom, right), in fractions of the query and of the match."""

    query: Box
    match: Box
    similarity: float


@dataclass(frozen=True, slots=True, eq=False)
class Basis:
    """coordinates = axes @ (region - mean); axes [k, dims]."""

    mean: Floats
    axes: Floats

    @classmethod
    def fit(cls, regions: Floats) -> Self:
        """From [n, dims]."""
        mean = regions.mean(0, dtype=np.float64).astype(np.float32)
        components, eigenvalues = principal_components(regions - mean)
        if not len(eigenvalues):  # all regions are equal
            return cls(mean, np.zeros((1, regions.shape[1]), np.float32))
        count = min(len(regions) - 1, regions.shape[1])
        gains = 1 / np.sqrt(eigenvalues + SHRINKAGE * eigenvalues.sum() / count)
        axes = (components * (gains / gains[0])[:, None])[:BASIS_DIMS]
        return cls(mean, axes.astype(np.float32))

    def apply(self, regions: Floats) -> Floats:
        """[n, dims] to [n, k]."""
        return np.asarray((regions - self.mean) @ self.axes.T, np.float32)

    @property
    def dims(self) -> int:
        return len(self.axes)


def regions(tokens: Floats) -> Floats:
    """The tokens of one image, [256, dims], to its regions, [16, dims], row by row."""
    step = GRID // SIDE
    grid = tokens.reshape(SIDE, step, SIDE, step, tokens.shape[-1])
    means: Floats = grid.mean((1, 3)).reshape(REGIONS, -1)
    return means


def tokens_of(regions: Floats) -> Floats:
    """Tokens [256, dims] that have these regions [16, dims]: each as its region is."""
    step = GRID // SIDE
    grid = regions.reshape(SIDE, SIDE, -1).repeat(step, axis=0).repeat(step, axis=1)
    tokens: Floats = grid.reshape(GRID * GRID, -1)
    return tokens


@dataclass(frozen=True, slots=True, eq=False)
class _Windows:
    """Windows of one size in the query, n a side, and what is usual for them.

    A placement has the number of the window that the match's first region falls on, from -12 to
    n - 1 in both directions: [n + 12, n + 12]. Of those, the p are used that show enough.
    """

    size: float  # tokens
    unit: Floats  # [n * n, k]
    visible: Floats  # [n, n], the share of a window that lies in the image
    mean: Floats  # [n * n], of similarities to regions of other images
    spread: Floats  # [n * n]
    used: NDArray[np.bool_]  # [n + 12, n + 12]
    placed: Floats  # [p, 3], top, left and side of the match in the query
    weight: Floats  # [p], the regions that are visible
    total: Floats  # [p], of the other images' sums
    squares: Floats  # [p]

    def lifts(self, match: Floats) -> Floats:
        """Similarities to a match's regions [16, k] in spreads above the usual, [16, n, n]."""
        lifts: Floats = (match @ self.unit.T - self.mean) / self.spread
        return lifts.reshape(REGIONS, *self.visible.shape)


@dataclass(frozen=True, slots=True, eq=False)
class Usual:
    """What a collection's images have in common, to be taken off: `positions` [16, k], their mean
    at each place, and `whitening` [k, k] of what is left within an image.
    """

    positions: Floats
    whitening: Floats

    @classmethod
    def fit(cls, cases: Iterable[Floats]) -> Self:
        """From the regions [16, k] of each case; at least one."""
        total, covariance, count = np.zeros(1), np.zeros(1), 0
        for regions in cases:
            local = _local(regions.astype(np.float64))
            total, covariance = total + regions, covariance + local.T @ local
            count += 1
        positions = total / count
        mean = _local(positions)
        covariance = covariance / count - mean.T @ mean
        whitening = _whitening(covariance / REGIONS, count * REGIONS)
        return cls(positions.astype(np.float32), whitening)

    def local(self, regions: Floats) -> Floats:
        """[..., 16, k] less what is usual at each place and what the image is all over: neither
        tells its places apart. Whitened.
        """
        local: Floats = _local(regions - self.positions) @ self.whitening
        return local


class Query:
    """An image that is searched with, beside other images that show what is usual."""

    def __init__(self, tokens: Floats, others: Floats, usual: Usual) -> None:
        """From tokens [256, k] and regions of other images [n, 16, k]."""
        centred = tokens.reshape(GRID, GRID, -1) - _at_tokens(usual.positions)
        own = (centred - centred.mean((0, 1))) @ usual.whitening
        regions = _unit(usual.local(others))
        self._usual, self._count = usual, len(others)
        self._windows = [_windows(own, size, regions) for size in SIZES]
        self._placed = np.concatenate([windows.placed for windows in self._windows])

    def pairs(self, match: Floats, is_other: bool = False) -> list[Pair]:
        """Windows of the query and regions of the match [16, k] that belong together, the clearest
        first; none where no placement stands out. `is_other`: the match is one of the others.

        Two scores have to agree on the placement. One sums over regions, the other takes their
        mean: a layout that many images share has a high sum, a chance likeness of a few regions
        a high mean. Where all regions of the match lie in the query, the sum is enough.
        """
        regions = _unit(self._usual.local(match))
        lifts = [windows.lifts(regions) for windows in self._windows]
        placed = self._placed
        sums, means = self._scores(lifts, is_other)
        best, margin = _clear(sums, placed)
        if sums[best] < LEAST_SCORE:
            return []
        if placed[best, 2] > WHOLE or margin < LEAST_MARGIN:
            best_mean = int(means.argmax())
            apart = _apart(placed[best_mean], placed[best])
            if means[best_mean] < LEAST_MEAN_SCORE or apart > SAME:
                return []
            best = best_mean
        return self._explained(placed[best], lifts, regions)

    def _scores(self, lifts: list[Floats], is_other: bool) -> tuple[Floats, Floats]:
        """Both scores of each placement."""
        sums, means = [], []
        count = self._count - is_other
        for windows, lift in zip(self._windows, lifts, strict=True):
            total = _sums((lift * windows.visible)[None])[0][windows.used]
            mean = (windows.total - is_other * total) / count
            square = (windows.squares - is_other * total**2) / count
            variance = np.maximum(square - mean**2, 0)
            weight = windows.weight
            # What regions have of their own varies as their number, what they share as its square.
            noise = variance + 0.5 * weight + 0.05 * weight**2
            sums.append((total - mean) / np.sqrt(noise))
            means.append((total - mean) / np.sqrt(variance + weight**2))
        return np.concatenate(sums), np.concatenate(means)

    def _explained(self, placed: Floats, lifts: list[Floats], regions: Floats) -> list[Pair]:
        top, left, side = (float(value) for value in placed)
        which = int(np.argmin([abs(of.size * SIDE / GRID - side) for of in self._windows]))
        windows = self._windows[which]
        n, step = len(windows.visible), windows.size / STEP / GRID
        found = []
        for region in range(REGIONS):
            row, column = divmod(region, SIDE)
            y, x = top + row * side / SIDE, left + column * side / SIDE
            i, j = (round(at / step) + EDGE for at in (y, x))
            if not (0 <= i < n and 0 <= j < n) or windows.visible[i, j] < LEAST_VISIBLE:
                continue
            lift = float(lifts[which][region, i, j])
            if lift > LEAST_LIFT:
                box = (max(y, 0), max(x, 0), min(y + side / SIDE, 1), min(x + side / SIDE, 1))
                similarity = float(windows.unit[i * n + j] @ regions[region])
                found.append((lift, Pair(box, _box(region), similarity)))
        found.sort(key=lambda of: -of[0])
        return [pair for _, pair in found[:MOST_PAIRS]]


def _windows(tokens: Floats, size: float, others: Floats) -> _Windows:
    step = size / STEP
    starts = np.arange(-EDGE, GRID / step - EDGE + 1e-6) * step
    n = len(starts)
    covered = np.minimum(starts[:, None] + size, np.arange(GRID) + 1)
    covered = (covered - np.maximum(starts[:, None], np.arange(GRID))).clip(0, 1)
    within = covered.sum(1)
    means = (covered / within[:, None]).astype(np.float32)
    pooled = np.tensordot(means, np.tensordot(means, tokens, (1, 1)), (1, 1))  # [row, column, k]
    unit = _unit(pooled.reshape(n * n, -1))
    lifts = others.reshape(-1, others.shape[-1]) @ unit.T
    mean, spread = lifts.mean(0), lifts.std(0) + LEAST_SPREAD
    lifts -= mean
    lifts /= spread
    visible = np.outer(within, within).astype(np.float32) / np.float32(size * size)
    sums = _sums(lifts.reshape(len(others), REGIONS, n, n) * visible)
    weight = _sums(np.broadcast_to(visible, (1, REGIONS, n, n)))[0]
    used = weight >= LEAST_WEIGHT
    first = (np.arange(len(weight)) - STEP * (SIDE - 1) - EDGE) * step / GRID
    top, left = np.meshgrid(first, first, indexing="ij")
    placed = np.stack([top[used], left[used], np.full(used.sum(), size * SIDE / GRID)], axis=1)
    sums = sums[:, used]
    return _Windows(
        size=size,
        unit=unit,
        visible=visible,
        mean=mean,
        spread=spread,
        used=used,
        placed=placed,
        weight=weight[used],
        total=sums.sum(0),
        squares=(sums**2).sum(0),
    )


def _sums(values: Floats) -> Floats:
    """Of values [m, 16, n, n] at windows, the sum over the regions of each placement."""
    n = values.shape[-1]
    beyond = STEP * (SIDE - 1)
    sums = np.zeros((len(values), n + beyond, n + beyond), np.float32)
    for region in range(REGIONS):
        y, x = (beyond - STEP * place for place in divmod(region, SIDE))
        sums[:, y : y + n, x : x + n] += values[:, region]
    return sums


def _clear(scores: Floats, placed: Floats) -> tuple[int, float]:
    """The best of placements, and by how much it is better than the best that is another one."""
    best = int(scores.argmax())
    others = scores[_apart(placed, placed[best]) > SAME]
    return best, float(scores[best] - others.max(initial=-np.inf))


def _apart(placed: Floats, one: Floats) -> Floats:
    """How far placements [..., 3] lay the middle of what one of them shows of the match."""
    top_left, side = one[:2], one[2]
    first, last = np.maximum(0, -top_left / side), np.minimum(1, (1 - top_left) / side)
    middle = (first + last) / 2
    moved = placed[..., :2] + placed[..., 2:] * middle - (top_left + side * middle)
    apart: Floats = np.abs(moved).max(-1) / max(1, side)
    return apart


def _local(regions: Any) -> Any:
    return regions - regions.mean(-2, keepdims=True)


def _whitening(covariance: Any, count: int) -> Floats:
    """Symmetric, from the covariance of `count` vectors: the fewer, the more shrinkage."""
    values, axes = np.linalg.eigh(covariance)
    values = values.clip(0)
    shrunk = values + (SHRINKAGE + 2 * len(values) / count) * values.mean()
    if shrunk[0] <= 0:  # all regions are equal
        return np.eye(len(values), dtype=np.float32)
    whitening: Floats = ((axes * np.sqrt(shrunk[0] / shrunk)) @ axes.T).astype(np.float32)
    return whitening


def _at_tokens(positions: Floats) -> Floats:
    """[16, k] for regions to [16, 16, k] for tokens, linear between the regions' centres."""
    at = ((np.arange(GRID) + 0.5) * SIDE / GRID - 0.5).clip(0, SIDE - 1)
    near = np.maximum(0, 1 - np.abs(at[:, None] - np.arange(SIDE))).astype(np.float32)
    field = positions.reshape(SIDE, SIDE, -1)
    tokens: Floats = np.einsum("ai,bj,ijk->abk", near, near, field, optimize=True)
    return tokens


def _unit(vectors: Floats) -> Floats:
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    unit: Floats = vectors / np.maximum(lengths, np.finfo(np.float32).tiny)
    return unit


def _box(region: int) -> Box:
    row, column = divmod(region, SIDE)
    return row / SIDE, column / SIDE, (row + 1) / SIDE, (column + 1) / SIDE


def spread(slots: NDArray[np.intp], count: int) -> NDArray[np.intp]:
    """At most `count` of the slots, evenly spaced: always the same for the same collection."""
    if len(slots) <= count:
        return slots
    return slots[np.linspace(0, len(slots) - 1, count).astype(np.intp)]
