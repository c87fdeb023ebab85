"""The matches of a search as one picture: each beside the query, with the places where they look
alike. Pixels in, pixels out; it decodes nothing.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from sidecar import legend
from sidecar.job import Rgb
from sidecar.places import Box, Pair

SIDE = 224  # pixels of an image
GAP = 12
CAPTION = 26
COLUMNS = 2

_COLOURS = ((214, 39, 40), (31, 119, 180), (44, 160, 44), (148, 103, 189), (255, 127, 14))
_PAPER, _INK, _MISSING = (255, 255, 255), (24, 24, 24), (226, 226, 226)


@dataclass(frozen=True, slots=True)
class Entry:
    """`image` is [SIDE, SIDE, 3], or None where there is none: then its boxes lie on grey."""

    caption: str
    image: Rgb | None
    pairs: tuple[Pair, ...]


def draw(query: Rgb, entries: list[Entry]) -> NDArray[np.uint8]:
    """Pixels [height, width, 3]. `query` is [SIDE, SIDE, 3]."""
    rows = max(1, -(-len(entries) // COLUMNS))
    wide, high = 2 * SIDE + 2 * GAP, SIDE + CAPTION + GAP
    sheet = Image.new("RGB", (COLUMNS * wide + GAP, rows * high + GAP), _PAPER)
    pen = ImageDraw.Draw(sheet)
    font = legend.typeface(14)
    for place, entry in enumerate(entries):
        left = GAP + place % COLUMNS * wide
        top = GAP + place // COLUMNS * high
        pen.text((left, top + 2), _fitting(entry.caption, font, 2 * SIDE), _INK, font)
        for which, image in (("query", query), ("match", entry.image)):
            x = left + (0 if which == "query" else SIDE + GAP // 2)
            y = top + CAPTION
            if image is None:
                pen.rectangle((x, y, x + SIDE - 1, y + SIDE - 1), _MISSING)
            else:
                sheet.paste(Image.fromarray(image), (x, y))
            for pair, colour in zip(entry.pairs, _COLOURS, strict=False):
                _outline(pen, x, y, pair.query if which == "query" else pair.match, colour)
    return np.asarray(sheet)


def _outline(
    pen: ImageDraw.ImageDraw, x: int, y: int, box: Box, colour: tuple[int, int, int]
) -> None:
    top, left, bottom, right = (round(side * SIDE) for side in box)
    edges = (x + left, y + top, x + right - 1, y + bottom - 1)
    inner = (edges[0] + 1, edges[1] + 1, edges[2] - 1, edges[3] - 1)
    pen.rectangle(edges, None, _PAPER, 5)
    pen.rectangle(inner, None, colour, 3)


def _fitting(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"
