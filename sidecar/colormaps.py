"""The colour maps: one table for both languages. electron_bridge/src/vectorsColormaps.ts is written
from it (tests/sidecar/test_heatmap.py, UPDATE_GOLDEN=1). Only colours may live here.
"""

import numpy as np
from numpy.typing import NDArray

# A few evenly spaced anchors each, low scores first, blended linearly. amber begins at white,
# for `multiply`; ember begins at black, for `screen`; the others follow Matplotlib's and Google's.
ANCHORS = {
    "amber": "ffffff ffeeb8 ffd45e ffae1f f98600",
    "ember": "000000 1c0900 4a1c00 963a00 ff7a1e",
    "turbo": "30123b 4662d7 36aaf9 1ae4b6 72fe5e c8ef34 faba39 f66b19 cb2a04 7a0403",
    "viridis": "440154 482878 3e4a89 31688e 26828e 1f9e89 35b779 6ece58 b5de2b fde725",
    "inferno": "000004 1b0c41 4a0c6b 781c6d a52c60 cf4446 ed6925 fb9b06 f7d13d fcffa4",
    "grey": "000000 ffffff",
}

# Which map `auto` means, by blend.
AUTO = {"multiply": "amber", "screen": "ember", "over": "turbo"}

LEVELS = 256  # a score of 0 is level 0, a score of 1 is level 255


def colours(name: str) -> NDArray[np.float64]:
    """The map's colour at each level: [LEVELS, 3], from 0 to 255."""
    anchors = np.array([list(bytes.fromhex(colour)) for colour in ANCHORS[name].split()], float)
    at = np.arange(LEVELS) * ((len(anchors) - 1) / (LEVELS - 1))
    left = np.minimum(at.astype(int), len(anchors) - 2)
    share = (at - left)[:, None]
    mixed: NDArray[np.float64] = anchors[left] * (1 - share) + anchors[left + 1] * share
    return mixed
