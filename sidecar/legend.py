"""The legend below a heatmap: which score has which colour, and what scores are not."""

from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from sidecar.job import LegendWords

# The Latin, Greek and Cyrillic letters of DejaVu Sans 2.37; Pillow's own font has no umlauts. Read
# now: where pictures are drawn, files may be out of reach.
_FONT = (Path(__file__).parent / "fonts" / "DejaVuSans.ttf").read_bytes()

_SMALLEST = 9  # pixels: smaller letters cannot be read
_SHORTEST = 6  # letters: a shorter bar shows no colours worth a number
_LONGEST = 26
_LIGHT, _DARK = (255, 255, 255), (24, 24, 24)


@dataclass(frozen=True, slots=True)
class Shown:
    """What a legend tells. `bar`: the colour of each level, lowest score first, [levels, 3].

    `norms`: what the scores 0 and 1 stand for. `bright`: the picture's ground is.
    """

    bar: NDArray[np.uint8]
    threshold: float
    norms: tuple[float, float] | None
    flat: bool
    bright: bool


@dataclass(slots=True)
class _Plan:
    """Texts as (left, top, text, anchor); the bar from column to column, and the tick below it."""

    height: int
    texts: list[tuple[float, float, str, str]]
    bar: tuple[int, int] | None = None
    top: int = 0
    thick: int = 0
    tick: float | None = None


def strip(size: tuple[int, int], shown: Shown, words: LegendWords) -> NDArray[np.uint8]:
    """The pixels [rows, width, 3] to put below a picture of `size` (height, width).

    Letters grow with the picture. Where the legend would be wider, or more than half as high, the
    note goes first, then the words, then the numbers; of a flat picture all goes.
    """
    height, width = size
    unit = max(_SMALLEST, min(width // 64, height // 18))
    for noted, worded in ((True, True), (False, True), (False, False)):
        plan = _plan(width, unit, shown, words if worded else None, noted)
        if plan is not None and 2 * plan.height <= height:
            return _drawn(plan, width, unit, shown)
    if shown.flat:
        return np.empty((0, width, 3), np.uint8)
    return _drawn(_bare(width, height), width, unit, shown)


def _bare(width: int, height: int) -> _Plan:
    thin = max(2, min(_SMALLEST // 2, height // 8))
    return _Plan(thin, [], (0, width), 0, thin)


def _plan(
    width: int, unit: int, shown: Shown, words: LegendWords | None, noted: bool
) -> _Plan | None:
    """None where it does not fit, or says nothing. Without `words`: a small bar and its numbers."""
    margin = unit * 2 // 3 if words else unit // 3
    plan = _Plan(margin, [])
    least, most = (f"{norm:.3g}" for norm in shown.norms) if shown.norms else ("", "")
    if not shown.flat:
        ends = ("0", "1")
        if words and shown.norms:
            ends = (f"0 ({words.norm} {least})", f"1 ({words.norm} {most})")
        if not _scale(plan, width, unit, shown.threshold, words, ends):
            return None
    elif words is None:
        return None
    else:
        text = f"{words.flat} ({words.norm} {least} … {most})" if shown.norms else words.flat
        _wrap(plan, text, width, unit)
    if noted and words:
        _wrap(plan, words.note, width, unit)
    plan.height += margin // 2
    return plan


def _scale(
    plan: _Plan,
    width: int,
    unit: int,
    threshold: float,
    words: LegendWords | None,
    ends: tuple[str, str],
) -> bool:
    """Add the bar with its words and numbers; whether they fit."""
    font, margin, top = typeface(unit), plan.height, plan.height
    low, high = (words.low, words.high) if words else ("", "")
    plan.thick = unit if words else unit // 2
    left = margin + (round(font.getlength(low)) + margin if low else 0)
    right = width - margin - (round(font.getlength(high)) + margin if high else 0)
    right = min(right, left + _LONGEST * unit)
    first, last = font.getlength(ends[0]), font.getlength(ends[1])
    if right - left < max(_SHORTEST * unit if words else 2 * unit, first + last + unit):
        return False
    plan.bar, plan.top = (left, right), top
    below = top + plan.thick + (unit // 2 if words else 1)
    plan.texts += [
        (margin, top + unit / 2, low, "lm"),
        (right + margin, top + unit / 2, high, "lm"),
        (left, below, ends[0], "la"),
        (right, below, ends[1], "ra"),
    ]
    value = threshold or 0.5
    at = left + value * (right - 1 - left)
    half = font.getlength(f"{value:.2g}") / 2 + unit
    clear = left + first < at - half and at + half < right - last
    if clear:
        plan.texts.append((at, below, f"{value:.2g}", "ma"))
    plan.tick = at if clear or threshold else None
    plan.height = below + unit * 3 // 2 if words else below + unit
    return True


def _wrap(plan: _Plan, text: str, width: int, unit: int) -> None:
    """Add lines of whole words, below what the plan has."""
    font, line = typeface(unit), ""
    for word in [*text.split(), ""]:
        longer = f"{line} {word}".strip()
        if line and (not word or font.getlength(longer) > width - unit):
            plan.texts.append((unit * 2 // 3, plan.height, line, "la"))
            plan.height += unit * 3 // 2
            longer = word
        line = longer


def _drawn(plan: _Plan, width: int, unit: int, shown: Shown) -> NDArray[np.uint8]:
    paper, ink = (_LIGHT, _DARK) if shown.bright else (_DARK, _LIGHT)
    canvas = Image.new("RGB", (width, plan.height), paper)
    pen = ImageDraw.Draw(canvas)
    if plan.bar:
        left, right = plan.bar
        level = np.arange(right - left) * (len(shown.bar) - 1) // max(right - left - 1, 1)
        pixels = np.repeat(shown.bar[level][None], plan.thick, axis=0)
        canvas.paste(Image.fromarray(pixels), (left, plan.top))
        if plan.texts:  # a fine line around it: its low end has the picture's own colour
            grey = tuple((a + 2 * b) // 3 for a, b in zip(ink, paper, strict=True))
            bottom = plan.top + plan.thick
            pen.rectangle((left - 1, plan.top - 1, right, bottom), outline=grey)
    if plan.tick is not None:
        tick = (plan.tick, plan.top + plan.thick, plan.tick, plan.top + plan.thick + unit // 3)
        pen.line(tick, fill=ink, width=max(1, unit // 12))
    for x, y, text, anchor in plan.texts:
        pen.text((x, y), text, fill=ink, font=typeface(unit), anchor=anchor)
    return np.asarray(canvas)


@lru_cache(maxsize=4)
def typeface(size: int) -> ImageFont.FreeTypeFont:
    """Letters of so many pixels."""
    return ImageFont.truetype(BytesIO(_FONT), size)
