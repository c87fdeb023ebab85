"""What a client can ask for, as values: inputs, outputs and heatmap options. No engine, no codec.

The wire (`protocol.py`), the encoder and the terminal all import these; this file imports numpy
for the array types, and nothing that loads a native library beside it.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from sidecar import colormaps
from sidecar.errors import RequestMalformed

FloatArray = NDArray[np.float32]
Rgb = NDArray[np.uint8]  # [height, width, 3], 8-bit sRGB
PixelValues = NDArray[np.float32]  # [n, 3, height, width], normalised as the manifest says

# The graph's outputs: [n, 256, text_hidden], [n, 256] and [n, text_hidden], all float32.
OUTPUTS = ("projected_embeddings", "attention_scores", "pooled_embedding")
HEATMAP_PNG = "heatmap_png"  # drawn by us: the bytes of a PNG file, uint8 [len]

COLORMAPS = ("auto", *colormaps.ANCHORS)
BLENDS = ("auto", "multiply", "screen", "over")

MAX_LETTERS = 300  # of each of the legend's texts
# What the legend's font has: Latin, Greek, Cyrillic, and common punctuation.
DRAWABLE = re.compile(
    "[ -~\u00a0-\u017f\u0218-\u021b\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03ce"
    "\u0400-\u045f\u0490-\u0491\u1e9e\u2010-\u2015\u2018-\u201e\u2020-\u2022\u2026\u20ac\u2190-\u2193\u2212\u2248\u2264\u2265]*"
)


@dataclass(frozen=True, slots=True, eq=False)
class ImageFile:
    """The bytes of a PNG, JPEG or WebP file."""

    data: bytes | memoryview


@dataclass(frozen=True, slots=True, eq=False)
class Pixels:
    """8-bit RGB of shape [height, width, 3], upright and opaque."""

    rgb: Rgb


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """Normalised float32 of shape [n, 3, height, width], as the manifest says."""

    pixel_values: PixelValues


@dataclass(frozen=True, slots=True, eq=False)
class Embeddings:
    """What an earlier `encode` of one image returned, and at which (height, width)."""

    pooled: FloatArray  # [1, text_hidden]
    projected: FloatArray  # [1, 256, text_hidden]
    resolution: tuple[int, int]


Input = ImageFile | Pixels | Tensor


def _one_of(choices: tuple[str, ...]) -> Any:
    """A text option; the first choice is the default."""

    def check(name: str, value: object) -> None:
        if not isinstance(value, str):
            raise RequestMalformed(f"heatmap.{name} has the wrong type.")
        if value not in choices:
            raise RequestMalformed(f"heatmap.{name} must be one of {', '.join(choices)}.")

    return field(default=choices[0], metadata={"check": check})


def _fraction(default: float) -> Any:
    """A number from 0 to 1."""

    def check(name: str, value: object) -> None:
        if type(value) not in (int, float):  # a bool is no number here, though Python says so
            raise RequestMalformed(f"heatmap.{name} has the wrong type.")
        if not 0 <= value <= 1:  # type: ignore[operator]  # NaN fails too
            raise RequestMalformed(f"heatmap.{name} must lie between 0 and 1; {value} came.")

    return field(default=default, metadata={"check": check})


def _flag(default: bool) -> Any:
    """True or false."""

    def check(name: str, value: object) -> None:
        if not isinstance(value, bool):
            raise RequestMalformed(f"heatmap.{name} has the wrong type.")

    return field(default=default, metadata={"check": check})


@dataclass(frozen=True, slots=True)
class LegendWords:
    """The words of the legend, to be translated. Raises RequestMalformed."""

    low: str = "low"
    high: str = "high"
    norm: str = "norm"
    note: str = "relative embedding norm; not attention, not evidence for a diagnosis"
    flat: str = "nothing stands out: the norms differ no more than those of an empty image"

    def __post_init__(self) -> None:
        for word in fields(self):
            text = getattr(self, word.name)
            if not isinstance(text, str):
                raise RequestMalformed(f"heatmap.legend.{word.name} has the wrong type.")
            if len(text) > MAX_LETTERS:
                raise RequestMalformed(
                    f"heatmap.legend.{word.name} may have {MAX_LETTERS} letters; {len(text)} came."
                )
            if not DRAWABLE.fullmatch(text):
                raise RequestMalformed(
                    f"heatmap.legend.{word.name} has letters that are not Latin, Greek or "
                    "Cyrillic. Leave the legend out (legend: false), and draw your own."
                )

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Self:
        """From a client's map. Unknown keys are ignored; None means the default."""
        return cls(**_known(cls, values))


def _flag_or_words(default: bool) -> Any:
    """True, false, or the words."""

    def check(name: str, value: object) -> None:
        if not isinstance(value, bool | LegendWords):
            raise RequestMalformed(f"heatmap.{name} has the wrong type.")

    return field(default=default, metadata={"check": check})


@dataclass(frozen=True, slots=True)
class HeatmapOptions:
    """How to draw a heatmap: the one table of its options, their types, ranges and defaults.

    An option that is added here is read from the wire too; drawing is `heatmap.py`'s.
    Raises RequestMalformed where a value has the wrong type or is out of range.
    """

    colormap: str = _one_of(COLORMAPS)  # auto goes with the blend
    alpha: float = _fraction(0.75)  # the map's weight over the image at the highest score
    threshold: float = _fraction(0.0)  # scores below it leave the image as it is
    invert: bool = _flag(False)  # low scores count as high ones
    # A strip below the picture, so that no pixel of the map moves; or its words.
    legend: bool | LegendWords = _flag_or_words(True)  # noqa: RUF009
    blend: str = _one_of(BLENDS)  # auto: multiply on bright images, screen on dark ones
    cells: bool = _flag(False)  # the 16 x 16 cells as they are, not smoothed

    def __post_init__(self) -> None:
        for option in fields(self):
            check: Callable[[str, object], None] = option.metadata["check"]
            check(option.name, getattr(self, option.name))

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Self:
        """From a client's map. Unknown keys are ignored; None means the default."""
        known = _known(cls, values)
        if isinstance(known.get("legend"), Mapping):
            known["legend"] = LegendWords.parse(known["legend"])
        return cls(**known)


def _known(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    names = [option.name for option in fields(cls)]
    return {name: values[name] for name in names if values.get(name) is not None}


@dataclass(frozen=True, slots=True)
class Job:
    """What to encode, and what to return.

    `resolution` is (height, width) in pixels; None means the model's default. `outputs` are names
    from OUTPUTS, and HEATMAP_PNG, in the order wanted.
    """

    input: Input
    resolution: tuple[int, int] | None = None
    outputs: tuple[str, ...] = OUTPUTS
    heatmap: HeatmapOptions = field(default_factory=HeatmapOptions)
