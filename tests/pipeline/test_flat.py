"""What an image without content looks like to a built model, and that it gets no colour."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from build import flat, images
from sidecar import encoder, heatmap, manifest
from sidecar.encoder import Encoder
from sidecar.job import HEATMAP_PNG, HeatmapOptions, Job, Pixels, Rgb
from sidecar.settings import parse
from tests import tiny

SIDES = (224, 448)
# None of them is among those that were measured.
EMPTY = {
    "yellow paper": np.full((300, 420, 3), (250, 240, 200), np.uint8),
    "a grey page": np.full((500, 400, 3), 190, np.uint8),
    "white noise at low contrast": np.random.default_rng(5)
    .normal(200, 6, (400, 400, 3))
    .clip(0, 255)
    .astype(np.uint8),
    "a scanner's shade": np.tile(
        np.linspace(228, 250, 500).astype(np.uint8)[:, None, None], 3
    ).repeat(350, axis=1),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tmp_path_factory.mktemp("flat") / "model")


@pytest.fixture(scope="module")
def loaded(model: Path) -> Encoder:
    settings = parse(["verify", "--model", str(model), "--threads", "1"])
    return encoder.load(manifest.read(model), settings)


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    ranks = [values.reshape(-1).argsort().argsort().astype(float) for values in (a, b)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def test_a_limit_is_measured_at_every_resolution(model: Path) -> None:
    described = manifest.read(model)
    assert tuple(described.flat) == described.resolutions == SIDES
    assert all(0 < limit < 0.2 for limit in described.flat.values())


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", EMPTY)
def test_an_image_without_content_gets_no_colour(loaded: Encoder, name: str, side: int) -> None:
    rgb: Rgb = EMPTY[name]
    outputs = ("attention_scores", HEATMAP_PNG)
    encoding = loaded.encode(Job(Pixels(rgb), (side, side), outputs))
    assert encoding.flat == (True,)
    drawn = np.asarray(Image.open(io.BytesIO(encoding.arrays[HEATMAP_PNG].tobytes())))
    np.testing.assert_array_equal(drawn[: len(rgb)], rgb)


@pytest.mark.parametrize("side", SIDES)
def test_a_page_is_coloured_in_the_order_of_its_scores(loaded: Encoder, side: int) -> None:
    white = np.full((160, 160, 3), 255, np.uint8)
    outputs = ("attention_scores", HEATMAP_PNG)
    options = HeatmapOptions(legend=False, cells=True)
    page = loaded.encode(Job(Pixels(images.bundled("ecg.png")), (side, side), outputs, options))
    assert page.flat == (False,)
    scores = page.arrays["attention_scores"][0]
    drawn = np.asarray(Image.open(io.BytesIO(heatmap.draw(scores, white, options))))
    colour = 255 - drawn[5::10, 5::10, 2].astype(int)
    assert spearman(colour, scores) > 0.99


def test_the_empty_images_are_the_same_at_every_call() -> None:
    once, again = flat.empty_images(64), flat.empty_images(64)
    assert once.keys() == again.keys()
    for name, rgb in once.items():
        np.testing.assert_array_equal(rgb, again[name])
