"""Whitening with shrinkage, fitted on a collection's own vectors. Arrays in and out; no files.

The vectors of a vision encoder lie in a narrow cone: a few directions hold most of the variance and
drown what tells images apart. Each principal component is divided by sqrt(eigenvalue + epsilon),
epsilon being SHRINKAGE times the mean eigenvalue. Without epsilon (full whitening) the components
that hold noise only would count as much as all others.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np

from sidecar.quantised import Floats

SHRINKAGE = 0.1
FIT_AT = (32, 64, 256, 1024)  # cases; after the last the whitening stays as it is
MAX_COMPONENTS = 512
TINY = float(np.finfo(np.float32).tiny)
NEGLIGIBLE = 0.98  # a gain that is as good as 1


@dataclass(frozen=True, slots=True, eq=False)
class Whitening:
    """W(x) = c + Uᵀ((gains - 1) * U c), with c = x - mean and U the components [k, dims].

    Scaled so that directions outside of U keep their length: a cosine does not notice.
    """

    mean: Floats
    components: Floats
    gains: Floats

    @classmethod
    def centring(cls, vectors: Floats) -> Self:
        """For too few vectors to whiten: takes off their mean, drawn to 0 as if one vector more
        were 0. So one vector alone is not its own mean.
        """
        none = np.zeros((0, vectors.shape[1]), np.float32)
        return cls(vectors.sum(0) / np.float32(len(vectors) + 1), none, np.zeros(0, np.float32))

    @classmethod
    def fit(cls, vectors: Floats) -> Self:
        """From [n, dims], n at least 2."""
        mean = vectors.mean(0, dtype=np.float64).astype(np.float32)
        components, eigenvalues = principal_components(vectors - mean)
        # The mean over as many as there could be: it must not depend on where noise ends.
        epsilon = SHRINKAGE * float(eigenvalues.sum()) / min(len(vectors) - 1, vectors.shape[1])
        if epsilon <= 0:  # all vectors are equal
            return cls(mean, components[:0], np.zeros(0, np.float32))
        gains = np.sqrt(epsilon / (eigenvalues + epsilon))
        kept = min(int(np.count_nonzero(gains < NEGLIGIBLE)), MAX_COMPONENTS)
        return cls(mean, components[:kept], gains[:kept].astype(np.float32))

    def apply(self, vectors: Floats) -> Floats:
        """[n, dims] to [n, dims]."""
        return self._scale(vectors - self.mean, self.gains)

    def norms(self, vectors: Floats, scales: Floats) -> Floats:
        """The length of each of [n, dims] once whitened, [n], without what rounding to multiples
        of its scale [n] added: whitening leaves that noise as large as it is, where it shrinks
        most of the vector, and a case would be less similar to all others the larger its scale is.
        """
        squares = (self.apply(vectors) ** 2).sum(1)
        dims = vectors.shape[1] - float((1 - self.gains**2).sum())
        noise = scales**2 / 12 * dims  # the variance of a number that is rounded
        return np.asarray(np.sqrt(np.maximum(squares - noise, squares / 2)), np.float32)

    def query(self, vector: Floats) -> tuple[Floats, float]:
        """p [dims] and b: for every x, (p · x - b) / |W x| is the cosine of W x and W vector."""
        centred = (vector - self.mean)[None]
        length = float(np.linalg.norm(self._scale(centred, self.gains)))
        p = self._scale(centred, self.gains**2)[0] / np.float32(max(length, TINY))
        return p, float(p @ self.mean)

    def _scale(self, centred: Floats, gains: Floats) -> Floats:
        scaled = ((centred @ self.components.T) * (gains - 1)) @ self.components
        return np.asarray(centred + scaled, np.float32)


def principal_components(centred: Floats) -> tuple[Floats, Floats]:
    """Of [n, d]: unit rows [k, d] and eigenvalues [k], largest first; k is at most min(n - 1, d).

    By the smaller of the two Gram matrices: 0.25 s for 1,024 vectors of 2,560, not 3.
    """
    n, d = centred.shape
    exact = centred.astype(np.float64)
    count = min(n - 1, d)
    if n <= d:
        values, vectors = np.linalg.eigh(exact @ exact.T)
        values, vectors = values[::-1][:count], vectors[:, ::-1][:, :count]
        kept = values > values[:1] * 1e-9
        values, vectors = values[kept], vectors[:, kept]
        rows = (vectors / np.sqrt(values)).T.astype(np.float32) @ centred
    else:
        values, vectors = np.linalg.eigh(exact.T @ exact)
        values, vectors = values[::-1][:count], vectors[:, ::-1][:, :count]
        kept = values > values[:1] * 1e-9
        values, rows = values[kept], vectors[:, kept].T.astype(np.float32)
    return np.ascontiguousarray(rows), (values / n).astype(np.float32)
