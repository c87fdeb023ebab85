"""What a search finds with a model, measured on the user's own images."""

import numpy as np
import pytest

from build import retrieval
from sidecar.quantised import Floats


def cone(count: int, offset: float) -> Floats:
    """Vectors that differ little from a common one: the larger that is, the less 8 bits keep."""
    draws = np.random.default_rng(0)
    return (draws.normal(size=(count, 64)) + offset).astype(np.float32)


def test_eight_bits_keep_less_of_a_narrow_cone_and_sixteen_all() -> None:
    wide, narrow = cone(100, 0), cone(100, 60)
    assert retrieval.overlap(wide, "int8") > retrieval.overlap(narrow, "int8") + 0.1
    assert retrieval.overlap(narrow, "int16") > 0.98


@pytest.mark.parametrize(
    ("low", "high", "chosen"),
    [(0.98, 1.0, "int8"), (0.97, 0.99, "int16"), (0.97, 0.97, "int8")],
)
def test_sixteen_bits_are_chosen_where_eight_keep_too_little(
    low: float, high: float, chosen: str
) -> None:
    figures = {"overlap of ten, int8": low, "overlap of ten, int16": high}
    assert retrieval.choice(figures) == chosen


def test_a_crop_is_the_part_that_its_box_says() -> None:
    rows, columns = np.mgrid[:100, :200]
    rgb = np.stack([rows, columns, rows * 0], axis=-1).astype(np.uint8)
    part, (top, left, bottom, right) = retrieval.crop(rgb, np.random.default_rng(0))
    assert part[0, 0, :2].tolist() == [round(top * 100), round(left * 200)]
    assert part[-1, -1, :2].tolist() == [round(bottom * 100) - 1, round(right * 200) - 1]
