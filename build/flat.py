"""How far the norms of tokens spread on images without content: the limit below which scores mean
nothing. The sidecar gives such images no colour.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from build import images
from build.artifacts import Artifact, Inputs, plain_graph, read_geometry, write_flat_limits
from sidecar import norms
from sidecar.job import Rgb
from sidecar.session import Session

# Beyond what was measured: there are more empty images than those below.
MARGIN = 1.15


@dataclass(frozen=True)
class MeasureFlat:
    """Reads CHECKPOINT and `graphs`, writes FLAT_LIMITS: the largest spread by side length."""

    graphs: Artifact = Artifact.QUANTISED_GRAPHS
    dynamic: bool = True  # the graph takes other resolutions than the native one

    writes: ClassVar = Artifact.FLAT_LIMITS

    @property
    def reads(self) -> tuple[Artifact, ...]:
        return (Artifact.CHECKPOINT, self.graphs)

    def __call__(self, inputs: Inputs, out: Path) -> None:
        shape = read_geometry(inputs[Artifact.CHECKPOINT])
        session = Session(plain_graph(inputs[self.graphs]))
        limits = {}
        for side in shape.resolutions if self.dynamic else (shape.native,):
            largest = 0.0
            for rgb in inputs.progress(empty_images(side).values(), f"empty images at {side}"):
                pixels = images.pixel_values(rgb, side, side, shape.normalisation)
                ranges = norms.ranges(session.run(pixels)["projected_embeddings"])
                largest = max(largest, float(norms.spread(ranges)[0]))
            limits[side] = math.ceil(min(largest * MARGIN, 1) * 1000) / 1000
        write_flat_limits(limits, out)


def empty_images(side: int) -> dict[str, Rgb]:
    """Pages with nothing on them, unevenly lit ones, and the noise of a sensor: [side, side, 3].

    By name; the same at every call.
    """
    down, across = np.mgrid[0:side, 0:side] / side
    noise = np.random.default_rng(0)

    def blank(*colour: int) -> Rgb:
        return np.full((side, side, 3), colour, np.uint8)

    def shades(low: float, high: float, share: np.ndarray) -> Rgb:
        return np.repeat((low + (high - low) * share)[..., None], 3, axis=2).astype(np.uint8)

    def grain(mean: float, deviation: float, channels: int) -> Rgb:
        grey = noise.normal(mean, deviation, (side, side, channels))
        return np.repeat(grey, 3 // channels, axis=2).clip(0, 255).astype(np.uint8)

    return {
        "white": blank(255, 255, 255),
        "pink": blank(255, 228, 225),
        "grey": blank(128, 128, 128),
        "black": blank(0, 0, 0),
        "white, lit from one side": shades(225, 255, across),
        "grey, darker at its corners": shades(145, 115, np.hypot(down - 0.5, across - 0.5) * 1.4),
        "grey noise": grain(128, 10, 1),
        "dark noise in colour": grain(30, 10, 3),
    }
