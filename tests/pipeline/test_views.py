"""Calibration views: the same for the same seed, and as varied as they are meant to be."""

import numpy as np
import pytest

from build.views import VIEW, crop, drawing, leaves, noise, recolour, smooth, textured, views
from sidecar.job import Rgb


def picture() -> Rgb:
    return np.random.default_rng(0).integers(0, 256, (90, 120, 3)).astype(np.uint8)


def test_the_same_seed_gives_the_same_views() -> None:
    one, again, other = (views([picture()], 8, seed) for seed in (1, 1, 2))
    assert all((a == b).all() for a, b in zip(one, again, strict=True))
    assert any(a.shape != b.shape or (a != b).any() for a, b in zip(one, other, strict=True))


def test_no_picture_is_needed_twice_and_none_is_blank() -> None:
    made = views([picture()], 16, 0)
    assert len(made) == 16
    for rgb in made:
        assert rgb.dtype == np.uint8
        assert rgb.shape[2] == 3
        assert rgb.std() > 1
    assert len({rgb.tobytes() for rgb in made}) == 16


@pytest.mark.parametrize("paint", [textured, smooth, leaves, drawing])
def test_every_kind_of_picture_holds_for_many_seeds(paint: object) -> None:
    assert callable(paint)
    for seed in range(12):
        assert paint(np.random.default_rng(seed)).shape == (VIEW, VIEW, 3)


@pytest.mark.parametrize("size", [(1, 1), (8, 300), (300, 8), (20, 20)])
def test_a_crop_lies_within_pictures_of_any_size(size: tuple[int, int]) -> None:
    rgb = np.zeros((*size, 3), np.uint8)
    for seed in range(12):
        part = crop(rgb, np.random.default_rng(seed))
        assert 1 <= part.size <= rgb.size
        assert recolour(part, np.random.default_rng(seed)).shape == part.shape


def test_noise_is_standardised_and_its_power_makes_it_smooth() -> None:
    rough, calm = (noise(np.random.default_rng(0), 2, power) for power in (0.6, 3.0))
    for z in (rough, calm):
        assert z.mean(axis=(0, 1)) == pytest.approx(0, abs=1e-9)
        assert z.std(axis=(0, 1)) == pytest.approx(1)
    assert np.diff(calm, axis=0).std() < np.diff(rough, axis=0).std() / 3
