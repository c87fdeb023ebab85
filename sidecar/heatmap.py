"""Scores and image become a picture: the map over the image, with a legend that says what it is."""

from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from sidecar.job import HeatmapOptions, Rgb
from sidecar.manifest import GRID

LEGEND = "relative embedding norm; not attention, not evidence for a diagnosis"

# Each map is a few anchors, evenly spaced and blended linearly; after Matplotlib's and Google's.
_ANCHORS = {
    "turbo": "30123b 4662d7 36aaf9 1ae4b6 72fe5e c8ef34 faba39 f66b19 cb2a04 7a0403",
    "viridis": "440154 482878 3e4a89 31688e 26828e 1f9e89 35b779 6ece58 b5de2b fde725",
    "inferno": "000004 1b0c41 4a0c6b 781c6d a52c60 cf4446 ed6925 fb9b06 f7d13d fcffa4",
    "grey": "000000 ffffff",
}


def draw(
    scores: NDArray[np.float32], over: Rgb | None, size: tuple[int, int], how: HeatmapOptions
) -> bytes:
    """Draw 256 row-major scores, stretched to `size` (height, width), as the bytes of a PNG.

    `over` is the image of that size to lay them on; None draws the map alone. The legend, if any,
    is added below, so that the map's pixels stay aligned with the image's.
    """
    height, width = size
    grid = Image.fromarray(np.ascontiguousarray(scores, np.float32).reshape(GRID, GRID))
    smooth = np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC)).clip(0, 1)
    shown = 1 - smooth if how.invert else smooth
    levels = (shown * 255 + 0.5).astype(np.uint8)
    picture = Image.fromarray(_colours(how.colormap)[levels])
    if over is not None:
        weight = np.where(smooth >= how.threshold, round(how.alpha * 255), 0).astype(np.uint8)
        picture = Image.composite(picture, Image.fromarray(over), Image.fromarray(weight))
    elif how.threshold > 0:
        hidden = Image.fromarray(((smooth < how.threshold) * 255).astype(np.uint8))
        picture.paste((0, 0, 0), mask=hidden)
    if how.legend:
        picture = _with_legend(picture, how)
    return _png(picture)


def _colours(name: str) -> NDArray[np.uint8]:
    anchors = np.array([list(bytes.fromhex(colour)) for colour in _ANCHORS[name].split()])
    at = np.linspace(0, len(anchors) - 1, 256)
    mixed = [np.interp(at, np.arange(len(anchors)), anchors[:, channel]) for channel in range(3)]
    return np.stack(mixed, axis=1).round().astype(np.uint8)


def _with_legend(picture: Image.Image, how: HeatmapOptions) -> Image.Image:
    unit = min(max(picture.width // 60, 9), 48)  # the height of a letter, in pixels
    font = ImageFont.load_default(unit)
    lines = _wrap(LEGEND, font, picture.width - 2 * unit)
    strip = unit // 2 + (1 + len(lines)) * unit * 3 // 2
    canvas = Image.new("RGB", (picture.width, picture.height + strip), "white")
    canvas.paste(picture, (0, 0))

    pen = ImageDraw.Draw(canvas)
    row = picture.height + unit // 2
    bar = Image.fromarray(_colours(how.colormap)[None]).resize((10 * unit, unit))
    if how.invert:
        bar = bar.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pen.text((unit, row + unit // 2), "low", fill="black", font=font, anchor="lm")
    canvas.paste(bar, (3 * unit + unit // 2, row))
    pen.text((14 * unit, row + unit // 2), "high", fill="black", font=font, anchor="lm")
    for line in lines:
        row += unit * 3 // 2
        pen.text((unit, row + unit // 2), line, fill="black", font=font, anchor="lm")
    return canvas


def _wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _png(picture: Image.Image) -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("Description", LEGEND)  # goes wherever the picture goes, legend or not
    out = BytesIO()
    picture.save(out, "PNG", pnginfo=info, compress_level=3)
    return out.getvalue()
