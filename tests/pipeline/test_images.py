"""Which images of a directory the build takes, and what it says of those that it cannot read."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from build import images


def test_the_images_of_a_directory_are_read_by_name_and_other_files_are_not(
    tmp_path: Path,
) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    for name in ("b.PNG", "a.png"):
        Image.fromarray(rgb).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("none")
    read = images.folder(tmp_path)
    assert list(read) == ["a.png", "b.PNG"]
    np.testing.assert_array_equal(read["a.png"], rgb)


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(OSError, match=r"^bad\.png: "):
        images.folder(tmp_path)


def test_a_directory_that_is_none_or_has_no_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected PNG, JPEG or WebP"):
        images.files(tmp_path)
    with pytest.raises(NotADirectoryError, match="expected a directory"):
        images.files(tmp_path / "none")


def test_an_image_of_a_package_that_is_missing_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(images, "find_spec", lambda _: None)
    with pytest.raises(FileNotFoundError, match=r"skimage is missing\. Run `make install`"):
        images.bundled("coins.png")
