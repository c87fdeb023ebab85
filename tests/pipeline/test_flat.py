"""What an image without content looks like to a built model, and that it gets no colour."""

from pathlib import Path

import numpy as np
import pytest

from bench import heatmap as heatmap_bench
from build import flat, images
from sidecar import encoder, manifest
from sidecar.encoder import Encoder
from sidecar.job import Job, Pixels
from sidecar.settings import parse
from tests import tiny

SIDES = (224, 448)
EMPTY = heatmap_bench.empty_pages()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tmp_path_factory.mktemp("flat") / "model")


@pytest.fixture(scope="module")
def loaded(model: Path) -> Encoder:
    settings = parse(["verify", "--model", str(model), "--threads", "1"])
    return encoder.load(manifest.read(model), settings)


def test_a_limit_is_measured_at_every_resolution(model: Path) -> None:
    described = manifest.read(model)
    assert tuple(described.flat) == described.resolutions == SIDES
    assert all(0 < limit < 0.2 for limit in described.flat.values())


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", EMPTY)
def test_an_image_without_content_gets_no_colour(loaded: Encoder, name: str, side: int) -> None:
    assert heatmap_bench.uncoloured(loaded, EMPTY[name], side)


@pytest.mark.parametrize("side", SIDES)
def test_a_page_is_coloured_in_the_order_of_its_scores(loaded: Encoder, side: int) -> None:
    page = loaded.encode(Job(Pixels(images.bundled("ecg.png")), (side, side)))
    assert page.flat == (False,)
    assert heatmap_bench.order_kept(page.arrays["attention_scores"][0]) > 0.99


def test_the_empty_images_are_the_same_at_every_call() -> None:
    once, again = flat.empty_images(64), flat.empty_images(64)
    assert once.keys() == again.keys()
    for name, rgb in once.items():
        np.testing.assert_array_equal(rgb, again[name])
