"""RGB of the model's resolution becomes `pixel_values`: arithmetic, no decoder, no resizing."""

import numpy as np
from numpy.typing import NDArray

from sidecar.job import PixelValues, Rgb
from sidecar.manifest import Normalisation


def normalise(rgb: Rgb, how: Normalisation) -> PixelValues:
    """[height, width, 3] of uint8 into [1, 3, height, width] of float32."""
    height, width = rgb.shape[:2]
    levels = _levels(how)
    out = np.empty((1, 3, height, width), np.float32)
    for channel in range(3):
        # No byte is out of range; to make sure of it, numpy would fill a buffer first.
        np.take(levels[channel], rgb[:, :, channel], out=out[0, channel], mode="clip")
    return out


def _levels(how: Normalisation) -> NDArray[np.float32]:
    """The value of each of the 256 bytes, [3, 256]: a table gives the same bits, sooner.

    Transformers rescales in float64 and normalises in float32; so does this.
    """
    rescaled = (np.arange(256, dtype=np.float64) * how.rescale).astype(np.float32)
    mean = np.array(how.mean, np.float32)[:, None]
    std = np.array(how.std, np.float32)[:, None]
    levels: NDArray[np.float32] = (rescaled[None] - mean) / std
    return levels
