"""Scores and an image become a picture: pure functions of values, no model, no I/O.

Twin of electron_bridge/src/vectorsPaint.ts: both compute the same integers and the same float64
operations in the same order, and tests/golden/heatmaps holds them to the same pixels.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from sidecar import colormaps, legend, png
from sidecar.colormaps import LEVELS
from sidecar.job import HeatmapOptions, LegendWords, Rgb
from sidecar.legend import Shown
from sidecar.manifest import GRID

EDGE = 0.08  # above a threshold, this much of a score takes the map from nothing to its full weight
BAND = 16  # rows painted at a time: what they need fits into a cache
BRIGHT = 128_000  # a luminance from which on a pixel is bright, of 255,000
SAMPLES = 256  # rows and columns, at most, that decide whether an image is bright

_ONE = 4096  # what the weights of a pixel's four rows, or columns, of cells add up to
_UNIT = 65535  # a score of 1
_SCALE = 1 / (_UNIT // (LEVELS - 1) * _ONE * _ONE)


def draw(
    scores: NDArray[np.float32],
    picture: Rgb,
    options: HeatmapOptions,
    norms: tuple[float, float] | None = None,
    flat: bool = False,
) -> bytes:
    """Lay 256 row-major scores over `picture` [height, width, 3]: the bytes of a PNG.

    `norms`: the least and the largest norm that the scores 0 and 1 stand for, told by the legend.
    `flat`: nothing stands out, so the picture stays as it is, and the legend says so. The legend is
    added below, so that the picture's pixels stay where they are.
    """
    height, width = picture.shape[:2]
    bright = is_bright(picture)
    blend = blend_of(options, bright)
    table = tables(options, blend, flat)
    strip = np.empty((0, width, 3), np.uint8)
    if options.legend:
        ground = _ground(picture, blend)
        bar = np.stack([table[c].reshape(LEVELS, 256)[:, ground[c]] for c in range(3)], axis=1)
        threshold = options.threshold
        if options.invert:
            bar, threshold = bar[::-1], 1 - threshold if threshold else 0
        words = LegendWords() if options.legend is True else options.legend
        shown = Shown(bar, threshold, norms, flat, bright)
        strip = legend.strip((height, width), shown, words)

    def bands() -> Iterator[NDArray[np.uint8]]:
        yield from paint(scores, picture, options, table)
        if len(strip):
            yield strip

    return png.write(width, height + len(strip), bands(), {"Description": LegendWords().note})


def paint(
    scores: NDArray[np.float32],
    picture: Rgb,
    options: HeatmapOptions,
    table: list[NDArray[np.uint8]],
) -> Iterator[NDArray[np.uint8]]:
    """The painted picture, top first, in bands [rows, width, 3]. A band is gone with the next."""
    height, width = picture.shape[:2]
    grid = np.floor(np.asarray(scores, np.float64).clip(0, 1) * _UNIT + 0.5).reshape(GRID, GRID)
    # Half a level more everywhere, as what comes of it is truncated: weights add up to _ONE.
    across = grid @ _weights(width, options.cells).T + 0.5 / _SCALE / _ONE
    down = _weights(height, options.cells)
    band = min(BAND, height)
    smooth = np.empty((band, width))
    levels = np.empty((band, width), np.int16)
    at = np.empty((band, width), np.uint16)
    painted = np.empty((band, width, 3), np.uint8)
    for top in range(0, height, BAND):
        rows = picture[top : top + BAND]
        count = len(rows)
        _product(down[top : top + BAND], across, smooth)
        level = levels[:count]
        np.multiply(smooth[:count], _SCALE, out=level, casting="unsafe")  # truncated
        level.clip(0, LEVELS - 1, out=level)
        if options.invert:
            np.subtract(LEVELS - 1, level, out=level)
        base = level.view(np.uint16)
        base <<= 8
        for channel in range(3):
            np.bitwise_or(base, rows[:, :, channel], out=at[:count])
            np.take(table[channel], at[:count], out=painted[:count, :, channel], mode="clip")
        yield painted[:count]


def blend_of(options: HeatmapOptions, bright: bool) -> str:
    """multiply, screen or over."""
    return ("multiply" if bright else "screen") if options.blend == "auto" else options.blend


def _product(
    down: NDArray[np.float64], across: NDArray[np.float64], out: NDArray[np.float64]
) -> None:
    """Of whole numbers below 2**53: exact, in whichever order they are added.

    Of the 16 rows of cells only the few that these pixels lie between. Four rows of pixels at a
    time, or OpenBLAS would start threads, which took ten times the processor.
    """
    for row in range(0, len(down), 4):
        weights = down[row : row + 4]
        cells = np.flatnonzero(weights.any(axis=0))
        near = slice(cells[0], cells[-1] + 1)
        np.matmul(weights[:, near], across[near], out=out[row : row + len(weights)])


def tables(options: HeatmapOptions, blend: str, flat: bool) -> list[NDArray[np.uint8]]:
    """Per channel, what a byte of the image becomes at each level: [level * 256 + byte]."""
    byte = np.arange(256, dtype=np.float64)[None]
    if flat:
        return [np.repeat(byte.astype(np.uint8), LEVELS, axis=0).reshape(-1)] * 3
    name = colormaps.AUTO[blend] if options.colormap == "auto" else options.colormap
    colours = colormaps.colours(name)
    weight = _weight(options)[:, None]
    made = []
    for channel in range(3):
        colour = colours[:, channel, None]
        if blend == "multiply":
            mixed = byte * (1 - weight * (1 - colour / 255))
        elif blend == "screen":
            mixed = 255 - (255 - byte) * (1 - weight * (colour / 255))
        else:
            mixed = byte * (1 - weight) + colour * weight
        made.append(np.floor(mixed + 0.5).astype(np.uint8).reshape(-1))
    return made


def is_bright(picture: Rgb) -> bool:
    """Whether the median pixel is brighter than mid-grey, which decides what `auto` means."""
    dark = _luminance(_sample(picture)) < BRIGHT
    return bool(np.count_nonzero(dark) <= len(dark) // 2)


def _ground(picture: Rgb, blend: str) -> Sequence[int]:
    """A colour of the picture on which the map is seen well: of the lighter ones, or the darker."""
    sample = _sample(picture)
    order = np.argsort(_luminance(sample), kind="stable")
    share = {"multiply": 0.75, "screen": 0.25, "over": 0.5}[blend]
    ground: list[int] = sample[order[int(share * len(order))]].tolist()
    return ground


def _sample(picture: Rgb) -> Rgb:
    """[n, 3]: every so many-th pixel of every so many-th row, at most SAMPLES of either."""
    down, across = (-(-side // SAMPLES) for side in picture.shape[:2])
    return picture[::down, ::across].reshape(-1, 3)


def _luminance(pixels: Rgb) -> NDArray[np.int64]:
    """From 0 to 255,000, by the weights of Rec. 601."""
    luminance: NDArray[np.int64] = pixels @ np.array([299, 587, 114])
    return luminance


def _weight(options: HeatmapOptions) -> NDArray[np.float64]:
    """The map's weight at each level: it grows with the score, and fades in above the threshold."""
    score = np.arange(LEVELS) / (LEVELS - 1)
    weight = options.alpha * (score * (2 - score))
    if options.threshold > 0:
        edge = min(EDGE, 1 - options.threshold)
        above = score - options.threshold
        share = np.minimum(above / edge, 1) if edge > 0 else np.ones(LEVELS)
        weight = np.where(above < 0, 0, weight * share)
    return np.asarray(weight)


def _weights(pixels: int, cells: bool) -> NDArray[np.float64]:
    """How much of each of 16 cells is in each pixel along a side: [pixels, 16], whole numbers.

    Cubic convolution (Keys, a = -0.5) between the centres of the cells; those at the edges go on.
    """
    out = np.zeros((pixels, GRID))
    rows = np.arange(pixels)
    if cells:
        out[rows, (2 * rows + 1) * GRID // (2 * pixels)] = _ONE
        return out
    at = (rows + 0.5) * (GRID / pixels) - 0.5
    left = np.floor(at)
    t = at - left
    before = np.floor((((-0.5 * t + 1) * t - 0.5) * t) * _ONE + 0.5)
    after = np.floor((((-1.5 * t + 2) * t + 0.5) * t) * _ONE + 0.5)
    last = np.floor(((0.5 * t - 0.5) * t * t) * _ONE + 0.5)
    nearest = left.astype(int)
    for offset, share in (
        (-1, before),
        (0, _ONE - before - after - last),
        (1, after),
        (2, last),
    ):
        np.add.at(out, (rows, (nearest + offset).clip(0, GRID - 1)), share)
    return out
