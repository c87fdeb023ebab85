"""A file that a person named: read, or refused in a sentence; written whole, or not at all."""

from pathlib import Path

import pytest

from sidecar import files
from sidecar.errors import ImageUnreadable


def test_a_result_is_written_over_an_older_one(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"older")
    files.write(tmp_path / "a.png", b"newer")
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("a.png", b"newer")]


def test_what_cannot_be_put_in_place_leaves_nothing_behind(tmp_path: Path) -> None:
    taken = tmp_path / "a.png"
    (taken / "inside").mkdir(parents=True)
    with pytest.raises(OSError, match=r"a result cannot be written: "):
        files.write(taken, b"data")
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


def test_a_file_that_is_missing_is_an_image_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ImageUnreadable, match=r"cannot be read: ") as caught:
        files.read(tmp_path / "none.png")
    assert "none.png" not in str(caught.value)
