"""Where two images look alike: regions of an image's tokens, and pairs of regions. Arrays only.

An image has 16 regions, 4 x 4, each the mean of 4 x 4 tokens. They are kept in a *basis* fitted on
a collection's own regions: the strongest principal components, whitened with shrinkage like the
vectors.
"""

from dataclasses import dataclass
from typing import Self

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
LEAST_LIFT = 3.0  # spreads
LEAST_MARGIN = 1.0
LEAST_SPREAD = np.float32(1e-3)  # of cosines
MOST_PAIRS = 5

_ROWS, _COLUMNS = np.divmod(np.arange(REGIONS), SIDE)
_TOUCHING = (np.abs(_ROWS[:, None] - _ROWS) <= 1) & (np.abs(_COLUMNS[:, None] - _COLUMNS) <= 1)

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


def pairs(query: Floats, match: Floats, others: Floats, positions: Floats) -> list[Pair]:
    """The regions of `query` and `match` [16, k] that belong together, the clearest first.

    `positions` [16, k] is the collection's mean at each place. A token says where it is, so without
    taking that off unrelated images pair at equal places. A pair is shown if

    - each is the other's best;
    - they are more alike than either is to `others` [n, 16, k]: by LEAST_LIFT spreads more than the
      median of its best similarities to each of those;
    - neither has an equal elsewhere in the other image, by LEAST_MARGIN spreads (as in Lowe's ratio
      test): one patch of grass is like all patches of grass.
    """
    ours, theirs = _unit(query - positions), _unit(match - positions)
    rest = _unit(others - positions)
    similarities = ours @ theirs.T
    best, back = similarities.argmax(axis=1), similarities.argmax(axis=0)
    top = similarities.max(axis=1)
    usual, spread = _usual(rest, ours)
    usual_there, spread_there = (of[best] for of in _usual(rest, theirs))
    # The best elsewhere: neither the region itself nor one that touches it.
    in_match = np.where(_TOUCHING[best], -1, similarities).max(axis=1)
    in_query = np.where(_TOUCHING, -1, similarities[:, best].T).max(axis=1)
    lift = np.minimum((top - usual) / spread, (top - usual_there) / spread_there)
    margin = (top - np.maximum(in_match, in_query)) / np.maximum(spread, spread_there)
    shown = (back[best] == np.arange(REGIONS)) & (lift > LEAST_LIFT) & (margin > LEAST_MARGIN)
    order = [int(i) for i in np.argsort(-lift, kind="stable") if shown[i]]
    return [Pair(_box(i), _box(int(best[i])), float(top[i])) for i in order[:MOST_PAIRS]]


def _usual(others: Floats, regions: Floats) -> tuple[Floats, Floats]:
    """Of each region's best similarity to each of the others: median and spread, [16] each. The
    spread is a standard deviation that outliers, images of the same patient, do not move.
    """
    best = (others @ regions.T).max(axis=1)
    median = np.median(best, axis=0)
    spread = 1.4826 * np.median(np.abs(best - median), axis=0)
    return median, np.maximum(spread, LEAST_SPREAD)


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
