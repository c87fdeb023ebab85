"""What a search finds with a model, measured on the user's own images."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from build import retrieval
from sidecar import manifest
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


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """As many as are needed, and a file that is none."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    draws = np.random.default_rng(0)
    for number in range(retrieval.LEAST):
        noise = draws.integers(0, 256, (6, 6, 3), np.uint8)
        Image.fromarray(noise).resize((48, 48)).save(folder / f"{number:02}.png")
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


def test_the_table_is_of_the_users_images_and_the_choice_goes_into_the_manifest(
    model: Path,
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = Path(shutil.copytree(model, tmp_path / "model"))
    monkeypatch.setattr(retrieval, "VIEWED", 4)
    monkeypatch.setattr(retrieval, "choice", lambda figures: "int16")
    words = [str(own), "--images", str(pictures), "--resolution", "224"]
    assert retrieval.main(words) == 0
    out, err = capsys.readouterr()
    assert f"| images | {retrieval.LEAST} |" in out
    assert "overlap of ten, int8" in out
    assert "of those, all in the cut" in out
    assert "broken.png" in err
    assert manifest.read(own).collections == "int8"
    assert retrieval.main([*words, "--write"]) == 0
    assert manifest.read(own).collections == "int16"


def test_too_few_images_and_a_strange_resolution_are_told(
    model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert retrieval.main([str(model), "--images", str(pictures), "--resolution", "225"]) == 1
    assert "225 came" in capsys.readouterr().err
    assert retrieval.main([str(model), "--images", str(tmp_path / "model")]) == 1
    assert "retrieval: " in capsys.readouterr().err
