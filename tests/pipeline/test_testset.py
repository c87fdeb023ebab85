"""The test set: enough images, all readable, and none that a choice has seen."""

import numpy as np
import pytest
from PIL import Image

from build import images, testset
from build.artifacts import BuildError
from build.testset import Unseen
from sidecar.job import Rgb

SEEN = (*images.CALIBRATION, *images.VIEWS, *images.VALIDATION, *images.DEMO_PROJECTOR)
SIDE = 32


@pytest.fixture(scope="module")
def unseen() -> dict[str, Rgb]:
    return Unseen.here().load()


def small(rgb: Rgb) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """What an image shows at a size at which neither format nor compression matters."""
    grey = Image.fromarray(rgb).convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
    values = np.asarray(grey).astype(np.float64).ravel()
    return np.asarray((values - values.mean()) / (values.std() + 1e-9))


def test_there_are_at_least_32_images_as_rgb(unseen: dict[str, Rgb]) -> None:
    assert len(unseen) >= 32
    for name, rgb in unseen.items():
        assert rgb.dtype == np.uint8, name
        assert rgb.shape[2:] == (3,), name
        assert rgb.std() > 5, name


def test_no_two_images_are_the_same_nor_one_that_a_choice_has_seen(
    unseen: dict[str, Rgb],
) -> None:
    seen = {name: images.bundled(name) for name in SEEN}
    looks = {name: small(rgb) for name, rgb in {**seen, **unseen}.items()}
    for name in unseen:
        for other in looks:
            if other != name:
                same = float(looks[name] @ looks[other]) / SIDE**2
                assert same < 0.999, (name, other)


def test_the_comparison_notices_a_seen_image_in_another_format() -> None:
    rgb = images.bundled("coffee.png")
    again = np.asarray(Image.fromarray(rgb).resize((300, 200)).convert("L").convert("RGB"))
    assert float(small(rgb) @ small(again)) / SIDE**2 > 0.999


def test_a_missing_package_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(testset, "PACKAGES", ("a-package-that-is-not-there",))
    with pytest.raises(BuildError, match="expected the package a-package-that-is-not-there"):
        Unseen.here()
