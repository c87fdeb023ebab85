"""The map lies where its scores are, and says what it is."""

import io

import numpy as np
import pytest
from PIL import Image

from sidecar import heatmap
from sidecar.errors import RequestMalformed
from sidecar.job import COLORMAPS, HeatmapOptions


def corner() -> np.ndarray:
    """Scores of one in the upper left quarter, zero elsewhere."""
    scores = np.zeros((16, 16), np.float32)
    scores[:8, :8] = 1
    return scores.reshape(-1)


def drawn(
    how: HeatmapOptions, over: np.ndarray | None = None, size: tuple[int, int] = (64, 96)
) -> np.ndarray:
    png = heatmap.draw(corner(), over, size, how)
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def test_high_scores_are_warm_and_low_ones_cold_where_they_lie() -> None:
    picture = drawn(HeatmapOptions(legend=False))
    assert picture.shape == (64, 96, 3)
    assert picture[5, 5].tolist() == [0x7A, 0x04, 0x03]
    assert picture[60, 90].tolist() == [0x30, 0x12, 0x3B]


def test_inverted_low_scores_are_the_warm_ones() -> None:
    picture = drawn(HeatmapOptions(legend=False, invert=True))
    assert picture[60, 90].tolist() == [0x7A, 0x04, 0x03]


def test_alpha_mixes_map_and_image() -> None:
    white = np.full((64, 96, 3), 255, np.uint8)
    picture = drawn(HeatmapOptions("grey", alpha=0.5, legend=False), white)
    assert abs(picture[60, 90, 0] - 127) <= 1  # black, half over white
    assert picture[5, 5].tolist() == [255, 255, 255]


def test_below_the_threshold_the_image_shows_alone() -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    picture = drawn(HeatmapOptions(threshold=0.5, alpha=1, legend=False), image)
    np.testing.assert_array_equal(picture[40:], image[40:])
    assert picture[5, 5].tolist() == [0x7A, 0x04, 0x03]


def test_the_legend_is_below_and_moves_no_pixel() -> None:
    with_legend, without = drawn(HeatmapOptions()), drawn(HeatmapOptions(legend=False))
    np.testing.assert_array_equal(with_legend[:64], without)
    assert len(with_legend) > 64


@pytest.mark.parametrize("legend", [True, False])
def test_every_file_says_that_it_is_no_evidence(legend: bool) -> None:
    png = heatmap.draw(corner(), None, (64, 64), HeatmapOptions(legend=legend))
    assert "not evidence for a diagnosis" in Image.open(io.BytesIO(png)).text["Description"]  # type: ignore[attr-defined]


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1)], ids=str)
def test_the_thinnest_images_get_one_too(size: tuple[int, int]) -> None:
    over = np.zeros((*size, 3), np.uint8)
    assert drawn(HeatmapOptions(), over, size).shape[1] == size[1]


@pytest.mark.parametrize("scores", [0.0, 0.5, 1.0])
def test_equal_scores_give_one_colour(scores: float) -> None:
    flat = np.full(256, scores, np.float32)
    png = heatmap.draw(flat, None, (32, 32), HeatmapOptions(legend=False))
    assert len(np.unique(np.asarray(Image.open(io.BytesIO(png))).reshape(-1, 3), axis=0)) == 1


@pytest.mark.parametrize("name", COLORMAPS)
def test_every_colour_map_gets_along_in_small_steps(name: str) -> None:
    colours = heatmap._colours(name).astype(int)
    assert colours.shape == (256, 3)
    assert np.abs(np.diff(colours, axis=0)).max() < 12


@pytest.mark.parametrize("fields", [{"alpha": -0.1}, {"threshold": 1.1}, {"colormap": "jet"}])
def test_what_cannot_be_drawn_is_refused(fields: dict[str, float]) -> None:
    with pytest.raises(RequestMalformed):
        HeatmapOptions(**fields)  # type: ignore[arg-type]
