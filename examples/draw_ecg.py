"""Draw `ecg.png`, ECG paper at 25 mm/s and 10 mm/mV, from the real recording kept beside it.

    python examples/draw_ecg.py [OUT.png]

The same input gives the same pixels; `README.md` here says where the recording comes from.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

HERE = Path(__file__).parent
RECORDING = HERE / "mitdb-208-mlii.npy"
SAMPLES_PER_SECOND = 360
UNITS_PER_MILLIVOLT = 200  # of the recorder's converter, as the database's header file gives it
UNITS_AT_ZERO = 1024

PIXELS_PER_MM = 5
MM_PER_SECOND = 25
MM_PER_MILLIVOLT = 10
PAGE_MM = (280, 200)
GRID_MM = (15, 20, 265, 190)  # left, top, right, bottom
ROWS = 4
CALIBRATION_MM = 10  # of each row's left end
SMOOTHING = 4  # drawn this much larger, then averaged down

PAPER = (253, 250, 246)
FINE_LINE = (247, 214, 212)
BOLD_LINE = (235, 165, 163)
INK = (24, 24, 40)


def millivolts() -> NDArray[np.float64]:
    """The excerpt, shape [samples], in millivolts."""
    units: NDArray[np.int16] = np.load(RECORDING)
    return (units.astype(np.float64) - UNITS_AT_ZERO) / UNITS_PER_MILLIVOLT


def page(signal: NDArray[np.float64]) -> Image.Image:
    """An RGB page: grid, in each row a calibration pulse and a stretch of `signal`, words."""
    scale = PIXELS_PER_MM * SMOOTHING
    image = Image.new("RGB", (PAGE_MM[0] * scale, PAGE_MM[1] * scale), PAPER)
    draw = ImageDraw.Draw(image)
    grid(draw, scale)
    left, top, right, bottom = GRID_MM
    row_mm = (bottom - top) / ROWS
    shown = round((right - left - CALIBRATION_MM) / MM_PER_SECOND * SAMPLES_PER_SECOND)
    for row in range(ROWS):
        zero = top + (row + 0.62) * row_mm  # beats reach further up than down
        trace(draw, calibration(left, zero), scale)
        samples = signal[row * shown : (row + 1) * shown]
        seconds = np.arange(len(samples)) / SAMPLES_PER_SECOND
        x = left + CALIBRATION_MM + seconds * MM_PER_SECOND
        trace(draw, np.stack([x, zero - samples * MM_PER_MILLIVOLT], axis=1), scale)
    image = image.reduce(SMOOTHING)
    label(ImageDraw.Draw(image), row_mm, shown)
    return image


def grid(draw: ImageDraw.ImageDraw, scale: int) -> None:
    """Lines each millimetre, bolder ones every five, as on ECG paper."""
    left, top, right, bottom = GRID_MM
    for step, colour, width in ((1, FINE_LINE, 1), (5, BOLD_LINE, 2)):
        pen = width * SMOOTHING
        for x in range(left, right + 1, step):
            draw.line((x * scale, top * scale, x * scale, bottom * scale), colour, pen)
        for y in range(top, bottom + 1, step):
            draw.line((left * scale, y * scale, right * scale, y * scale), colour, pen)


def calibration(left: float, zero: float) -> NDArray[np.float64]:
    """One millivolt for 0.2 s, as points [n, 2] in millimetres."""
    high = zero - MM_PER_MILLIVOLT
    steps = [(1, zero), (2.5, zero), (2.5, high), (7.5, high), (7.5, zero), (9, zero)]
    return np.array([(left + x, y) for x, y in steps])


def trace(draw: ImageDraw.ImageDraw, points_mm: NDArray[np.float64], scale: int) -> None:
    """A pen line through points [n, 2] given in millimetres."""
    points = [(float(x), float(y)) for x, y in points_mm * scale]
    draw.line(points, INK, 2 * SMOOTHING, joint="curve")


def label(draw: ImageDraw.ImageDraw, row_mm: float, shown: int) -> None:
    """What the page is, its scales, and when each row starts."""
    left, top, right, bottom = (mm * PIXELS_PER_MM for mm in GRID_MM)
    large, small = font(24), font(16)
    draw.text((left, 30), "MIT-BIH Arrhythmia Database, record 208", INK, large)
    draw.text((left, 66), "Lead MLII, from 19:35. An example page, not for diagnosis.", INK, small)
    draw.text((right, 66), "25 mm/s    10 mm/mV", INK, small, anchor="ra")
    for row in range(ROWS):
        y = top + row * row_mm * PIXELS_PER_MM + 8
        seconds = row * shown / SAMPLES_PER_SECOND
        draw.text((left + 8, y), f"MLII  +{seconds:.1f} s", INK, small)
    draw.text((left, bottom + 14), "1 small square: 0.04 s, 0.1 mV", INK, small)


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, so that no font of the machine has a say."""
    return ImageFont.load_default(size)


if __name__ == "__main__":
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "ecg.png"
    page(millivolts()).save(out, optimize=True)
