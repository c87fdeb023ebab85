"""The L2 norms of an image's tokens: from what to what, and whether they differ enough to mean
anything. Arithmetic only; what scores are drawn from, before they are scaled to 0…1.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from sidecar.job import FloatArray

ROUNDING = 1e-6  # norms that differ by less are equal, as for the graph's scores


def ranges(projected: FloatArray) -> NDArray[np.float64]:
    """The least and the largest norm of each image: [n, tokens, hidden] to [n, 2]."""
    norms = np.sqrt(np.einsum("nth,nth->nt", projected, projected, dtype=np.float64))
    return np.stack([norms.min(axis=1), norms.max(axis=1)], axis=1)


def spread(ranges: NDArray[np.float64]) -> NDArray[np.float64]:
    """(largest - least) / largest of each image, 0 to 1; 0 where all norms are 0: [n, 2] to [n]."""
    least, largest = ranges[:, 0], ranges[:, 1]
    relative: NDArray[np.float64] = (largest - least) / np.where(largest > 0, largest, 1)
    return relative


def are_flat(
    ranges: NDArray[np.float64], limits: Mapping[int, float], resolution: tuple[int, int]
) -> NDArray[np.bool_]:
    """Whether each image's norms spread no more than those of images without content: [n].

    `limits`: the largest spread of such images, by side length; of two sides, the larger counts.
    Without limits (a model built before they were measured) only equal norms are flat.
    """
    limit = max(ROUNDING, *(limits.get(side, 0.0) for side in resolution))
    flat: NDArray[np.bool_] = spread(ranges) <= limit
    return flat
