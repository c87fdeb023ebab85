"""The picture shows what the scores say, leaves the image legible, and says what it is not."""

import base64
import io
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sidecar import colormaps, heatmap, legend
from sidecar.errors import RequestMalformed
from sidecar.job import DRAWABLE, HeatmapOptions, LegendWords
from sidecar.legend import Shown

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden" / "heatmaps.json"
COLORMAPS_TS = ROOT / "electron_bridge" / "src" / "vectorsColormaps.ts"

BARE = HeatmapOptions(legend=False)
PINK = (255, 228, 225)


def corner() -> np.ndarray:
    """Scores of one in the upper left quarter, zero elsewhere."""
    scores = np.zeros((16, 16), np.float32)
    scores[:8, :8] = 1
    return scores.reshape(-1)


def rising() -> np.ndarray:
    """Scores from zero, on the left, to one on the right."""
    return np.tile(np.linspace(0, 1, 16, dtype=np.float32), 16)


def page(
    height: int = 64, width: int = 96, colour: tuple[int, ...] = (255, 255, 255)
) -> np.ndarray:
    return np.full((height, width, 3), colour, np.uint8)


def drawn(
    how: HeatmapOptions,
    picture: np.ndarray | None = None,
    scores: np.ndarray | None = None,
    norms: tuple[float, float] | None = None,
    flat: bool = False,
) -> np.ndarray:
    picture = page() if picture is None else picture
    png = heatmap.draw(corner() if scores is None else scores, picture, how, norms, flat)
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def luminance(pixels: np.ndarray) -> np.ndarray:
    return np.asarray(pixels, float) @ [0.299, 0.587, 0.114]


def test_high_scores_are_coloured_where_they_lie_and_low_ones_are_not() -> None:
    picture = drawn(BARE)
    red, green, blue = picture[5, 5]
    assert red > green > blue
    assert picture[60, 90].tolist() == [255, 255, 255]


def test_a_higher_score_never_has_a_weaker_colour() -> None:
    row = drawn(BARE, scores=rising())[30]
    assert (np.diff(row[:, 2]) <= 0).all()
    assert row[0, 2] == 255
    assert row[-1, 2] < 120


def test_inverted_low_scores_are_the_coloured_ones() -> None:
    picture = drawn(HeatmapOptions(legend=False, invert=True))
    assert picture[5, 5].tolist() == [255, 255, 255]
    assert picture[60, 90, 2] < 120


def test_alpha_zero_leaves_the_image_as_it_is() -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    np.testing.assert_array_equal(drawn(HeatmapOptions(legend=False, alpha=0), image), image)


def test_below_the_threshold_the_image_shows_alone() -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    picture = drawn(HeatmapOptions(threshold=0.5, alpha=1, legend=False, blend="over"), image)
    np.testing.assert_array_equal(picture[40:], image[40:])
    assert picture[5, 5].tolist() == [0x7A, 0x04, 0x03]


def test_the_edge_at_a_threshold_is_soft() -> None:
    how = HeatmapOptions(threshold=0.4, legend=False)
    row = drawn(how, page(64, 1024), rising())[30, :, 2]
    assert np.abs(np.diff(row)).max() <= 12
    assert (row == 255).sum() > 300


def test_cells_are_squares_of_one_colour() -> None:
    scores = np.random.default_rng(0).random(256).astype(np.float32)
    picture = drawn(HeatmapOptions(legend=False, cells=True), page(160, 160), scores)
    cells = picture.reshape(16, 10, 16, 10, 3)
    assert (cells == cells[:, :1, :, :1]).all()


@pytest.mark.parametrize(("height", "width"), [(448, 448), (1000, 1400)])
def test_a_black_grid_on_pink_stays_one(height: int, width: int) -> None:
    image = page(height, width, PINK)
    ink = np.zeros((height, width), bool)
    ink[::20], ink[:, ::20] = True, True
    image[ink] = (10, 10, 12)
    for scores in (rising(), np.ones(256, np.float32)):
        picture = drawn(BARE, image, scores)
        change = np.abs(luminance(picture) - luminance(image))
        assert change[ink].max() < 0.1 * 255
        contrast = luminance(picture[~ink]).min() - luminance(picture[ink]).max()
        assert contrast > 0.55 * 255


def test_a_dark_image_keeps_its_dark_and_its_detail() -> None:
    down, across = np.mgrid[0:256, 0:256]
    grey = 25 + 12 * (np.sin(across / 5) > 0) + 150 * (np.abs(down - 128) < 20)
    image = np.repeat(grey[..., None], 3, 2).astype(np.uint8)
    scores = np.zeros((16, 16), np.float32)
    scores[2:5, 2:5] = 1
    picture = drawn(BARE, image, scores.reshape(-1))
    np.testing.assert_array_equal(picture[128:, 128:], image[128:, 128:])
    hot = luminance(picture[44:68, 40:72])
    assert hot.max() < 150
    assert hot.max() - hot.min() > 5  # the stripes are still there
    assert (np.diff(luminance(image[50, 40:72])) * np.diff(hot[6]) >= 0).all()


def test_of_a_flat_image_nothing_is_coloured_and_the_legend_says_so() -> None:
    image = np.random.default_rng(0).integers(200, 256, (300, 400, 3), np.uint8)
    picture = drawn(HeatmapOptions(), image, norms=(1.1, 1.12), flat=True)
    np.testing.assert_array_equal(picture[:300], image)
    strip = picture[300:]
    assert len(strip) > 20
    assert (strip.max(axis=2) - strip.min(axis=2)).max() == 0  # letters, no colours
    assert len(np.unique(strip)) > 2


def test_the_legend_is_below_and_moves_no_pixel() -> None:
    with_legend, without = drawn(HeatmapOptions()), drawn(BARE)
    np.testing.assert_array_equal(with_legend[:64], without)
    assert len(with_legend) > 64


@pytest.mark.parametrize(
    "how",
    [
        HeatmapOptions(),
        HeatmapOptions(threshold=0.6),
        HeatmapOptions(alpha=0.3),
        HeatmapOptions(invert=True),
        HeatmapOptions("turbo", blend="over", threshold=0.2),
    ],
    ids=str,
)
@pytest.mark.parametrize("colour", [PINK, (12, 12, 14)], ids=["pink", "dark"])
def test_the_legend_has_the_colours_of_the_picture(
    how: HeatmapOptions, colour: tuple[int, ...]
) -> None:
    image = page(256, 256, colour)
    picture = drawn(how, image, np.sort(np.linspace(0, 1, 256, dtype=np.float32)))
    shown = {tuple(pixel) for pixel in picture[:256].reshape(-1, 3)}
    bar = {tuple(pixel) for pixel in picture[256:].reshape(-1, 3)}
    ink = {pixel for pixel in bar if max(pixel) - min(pixel) <= 6}  # letters, paper and lines
    assert len(bar - ink) > 20 or how.threshold
    assert bar - ink <= shown | _neighbours(shown)


def _neighbours(colours: set[tuple[int, ...]]) -> set[tuple[int, ...]]:
    """One grey level away: the smoothed map need not meet each of 256 levels."""
    steps = [np.array(step) for step in np.ndindex(5, 5, 5)]
    return {tuple(np.array(colour) + step - 2) for colour in colours for step in steps}


@pytest.mark.parametrize("size", [(40, 60), (160, 224), (1000, 1400), (2000, 3000), (90, 3000)])
def test_a_legend_is_in_proportion(size: tuple[int, int]) -> None:
    shown = Shown(np.zeros((256, 3), np.uint8), 0, (1, 2), False, True)
    rows = len(legend.strip(size, shown, LegendWords()))
    assert 0 < rows <= size[0] / 2
    assert rows >= min(size) / 15  # and large enough to be seen


def test_the_smallest_pictures_have_numbers_too() -> None:
    shown = Shown(np.full((256, 3), 200, np.uint8), 0, (1, 2), False, True)
    strip = legend.strip((40, 60), shown, LegendWords())
    assert strip.min() < 80  # digits, in ink


@pytest.mark.parametrize("flat", [False, True])
def test_a_legend_can_be_translated(flat: bool) -> None:
    words = LegendWords(
        "niedrig", "hoch", "Norm", "kein Beleg für eine Diagnose", "nichts fällt auf"
    )
    german = drawn(HeatmapOptions(legend=words), page(400, 600), flat=flat)[400:]
    english = drawn(HeatmapOptions(), page(400, 600), flat=flat)[400:]
    assert german.shape != english.shape or (german != english).any()


def test_the_font_has_every_letter_that_a_legend_may_have() -> None:
    font = legend.typeface(18)
    missing = bytes(font.getmask("\uffff"))
    letters = [chr(code) for code in range(0x2300) if DRAWABLE.fullmatch(chr(code))]
    assert len(letters) > 500
    empty = {letter for letter in letters if bytes(font.getmask(letter)) in (b"", missing)}
    assert empty <= {" ", "\u00a0", "\u00ad"}  # spaces, and the hyphen that shows at line ends


@pytest.mark.parametrize(
    "words", [{"note": "relative 強度"}, {"low": "x" * 301}, {"high": "a\nb"}], ids=str
)
def test_a_legend_that_cannot_be_drawn_is_refused(words: dict[str, str]) -> None:
    with pytest.raises(RequestMalformed, match=f"heatmap.legend.{next(iter(words))}"):
        LegendWords(**words)


@pytest.mark.parametrize("how", [HeatmapOptions(), BARE])
def test_every_file_says_that_it_is_no_evidence(how: HeatmapOptions) -> None:
    png = heatmap.draw(corner(), page(), how)
    assert "not evidence for a diagnosis" in Image.open(io.BytesIO(png)).text["Description"]  # type: ignore[attr-defined]


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (7, 5)], ids=str)
@pytest.mark.parametrize("flat", [False, True])
def test_the_thinnest_images_get_one_too(size: tuple[int, int], flat: bool) -> None:
    assert drawn(HeatmapOptions(), page(*size), flat=flat).shape[1] == size[1]


@pytest.mark.parametrize("score", [0.0, 0.5, 1.0])
def test_equal_scores_give_one_colour(score: float) -> None:
    picture = drawn(BARE, page(33, 31), np.full(256, score, np.float32))
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) == 1


@pytest.mark.parametrize("name", colormaps.ANCHORS)
def test_every_colour_map_gets_along_in_small_steps(name: str) -> None:
    colours = colormaps.colours(name)
    assert colours.shape == (256, 3)
    assert np.abs(np.diff(colours, axis=0)).max() < 12


@pytest.mark.parametrize(
    "fields",
    [{"alpha": -0.1}, {"threshold": 1.1}, {"colormap": "jet"}, {"blend": "add"}],
    ids=str,
)
def test_what_cannot_be_drawn_is_refused(fields: dict[str, float]) -> None:
    with pytest.raises(RequestMalformed):
        HeatmapOptions(**fields)  # type: ignore[arg-type]


# What the bridge must paint, too: see electron_bridge/test/vectors.test.ts. UPDATE_GOLDEN=1 writes
# both files anew; look at the difference before you commit it.

OPTIONS: list[dict[str, object]] = [
    {},
    {"blend": "screen"},
    {"blend": "over"},
    {"blend": "over", "colormap": "viridis", "alpha": 1},
    {"blend": "multiply", "colormap": "inferno", "invert": True},
    {"threshold": 0.45},
    {"threshold": 1},
    {"threshold": 0.3, "invert": True, "colormap": "grey", "blend": "over"},
    {"cells": True},
    {"alpha": 0.2, "colormap": "ember"},
]


def painted(image: np.ndarray, scores: np.ndarray, options: dict[str, object]) -> np.ndarray:
    how = HeatmapOptions(**options)  # type: ignore[arg-type]
    table = heatmap.tables(how, heatmap.blend_of(how, heatmap.is_bright(image)), flat=False)
    return np.concatenate([band.copy() for band in heatmap.paint(scores, image, how, table)])


def golden() -> list[dict[str, object]]:
    rng = np.random.default_rng(7)
    cases: list[dict[str, object]] = []
    for height, width, least, most in ((30, 44, 150, 256), (37, 21, 0, 90), (9, 12, 0, 256)):
        image = rng.integers(least, most, (height, width, 3), np.uint8)
        scores = rng.random(256).astype(np.float32)
        for options in OPTIONS:
            cases.append(
                {
                    "width": width,
                    "height": height,
                    "rgb": base64.b64encode(image.tobytes()).decode(),
                    "scores": base64.b64encode(scores.astype("<f4").tobytes()).decode(),
                    "options": options,
                    "painted": base64.b64encode(painted(image, scores, options).tobytes()).decode(),
                }
            )
    return cases


def test_the_golden_pictures_are_what_is_painted() -> None:
    cases = golden()
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(json.dumps(cases, indent=0) + "\n", "ascii")
    assert json.loads(GOLDEN.read_text("ascii")) == cases


def test_both_languages_have_one_table_of_colour_maps() -> None:
    rows = [f"  {name}: '{anchors}'," for name, anchors in colormaps.ANCHORS.items()]
    lines = [
        "/** Written from sidecar/colormaps.py, which says what these are: see its test. */",
        "",
        "// biome-ignore format: one map a line, as there",
        "export const COLORMAPS = {",
        *rows,
        "} as const;",
    ]
    text = "\n".join(lines) + "\n"
    if os.environ.get("UPDATE_GOLDEN"):
        COLORMAPS_TS.write_text(text, "ascii")
    assert COLORMAPS_TS.read_text("ascii") == text


def test_every_colour_map_is_an_anchor_list() -> None:
    for anchors in colormaps.ANCHORS.values():
        assert re.fullmatch(r"[0-9a-f]{6}( [0-9a-f]{6})+", anchors)
