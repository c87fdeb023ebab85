"""The folder of a corpus and its rows, without Ray: what is written, and what a kill costs."""

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from build import corpus as command
from build.corpus_plan import Block, Folder
from build.corpus_rows import BlockEncoder, vectors
from build.corpus_source import items
from build.errors import BuildError
from sidecar.collection import Vectors
from tests.corpus.stand_in import (
    DIMS,
    StandIn,
    about,
    corpus,
    encode,
    folder_of,
    prepared,
    tokens_of,
)
from tests.corpus_scale import pictures

NAMES = [f"{number:02}.png" for number in range(10)]


def rows(out: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(out).to_pylist()
    return found


def test_every_image_is_a_row_in_order(tmp_path: Path) -> None:
    corpus(folder_of(tmp_path / "in", NAMES), tmp_path / "out")
    found = rows(tmp_path / "out")
    assert [row["id"] for row in found] == NAMES
    first = found[0]
    tokens = tokens_of(b"00.png")
    assert np.array_equal(np.float32(first["pooled_embedding"]), tokens.mean(0))
    assert (first["norms"], first["flat"], first["error"]) == ([0.5, 2.0], False, None)
    assert (first["model"], first["recipe"]) == ("m" * 64, "default")
    assert (first["projection"], first["resolution"]) == ("projector", [448, 448])
    assert first["milliseconds"] >= 0
    ours = vectors(np.array(first["pooled_embedding"], np.float32), first["regions"]).regions
    exact = Vectors.of(tokens.mean(0), tokens).regions
    assert np.abs(ours - exact).max() <= np.abs(exact).max() / 127


def test_a_bad_image_is_a_row_with_its_code(tmp_path: Path) -> None:
    corpus(folder_of(tmp_path / "in", NAMES, bad=["03.png"]), tmp_path / "out")
    bad = [row for row in rows(tmp_path / "out") if row["error"]]
    assert [(row["id"], row["error"]) for row in bad] == [("03.png", "image.unreadable")]
    assert bad[0]["error_message"] == "the bytes are no image."
    assert bad[0]["pooled_embedding"] is None
    assert bad[0]["model"] == "m" * 64


def test_a_bug_is_a_row_too(tmp_path: Path) -> None:
    class Broken(StandIn):
        def encode(self, image: bytes, *, resolution: tuple[int, int]) -> Any:
            raise ZeroDivisionError("secret/path.png")

    job, folder = prepared(folder_of(tmp_path / "in", NAMES[:1]), tmp_path / "out")
    encode(job, folder, Broken())
    (row,) = rows(tmp_path / "out")
    assert (row["error"], row["error_message"]) == ("internal", "a bug: ZeroDivisionError.")


def test_a_vector_that_is_not_finite_is_an_error(tmp_path: Path) -> None:
    class Infinite(StandIn):
        def encode(self, image: bytes, *, resolution: tuple[int, int]) -> Any:
            encoding = super().encode(image, resolution=resolution)
            encoding.projected_embeddings[0, 0] = np.nan
            return encoding

    job, folder = prepared(folder_of(tmp_path / "in", NAMES[:1]), tmp_path / "out")
    encode(job, folder, Infinite())
    assert rows(tmp_path / "out")[0]["error"] == "tensor.not_finite"


def test_what_failed_for_want_of_memory_is_tried_once_more(tmp_path: Path) -> None:
    job, folder = prepared(folder_of(tmp_path / "in", NAMES[:4]), tmp_path / "out")
    encode(job, folder, StandIn(failures=3))
    assert [row["error"] for row in rows(tmp_path / "out")] == [None] * 4
    job, folder = prepared(tmp_path / "in", tmp_path / "again")
    encode(job, folder, StandIn(failures=5))
    errors = [row["error"] for row in rows(tmp_path / "again")]
    assert errors == ["resources.exhausted", None, None, None]


def test_tokens_are_kept_where_asked_for(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", NAMES[:2], bad=NAMES[1:2])
    job, folder = prepared(source, tmp_path / "out", tokens=True)
    encode(job, folder, StandIn())
    good, bad = rows(tmp_path / "out")
    assert np.array_equal(np.float32(good["projected_embeddings"]), tokens_of(b"00.png").ravel())
    assert bad["projected_embeddings"] is None


def test_a_job_that_was_killed_goes_on_with_the_blocks_that_are_not_done(tmp_path: Path) -> None:
    job, folder = prepared(folder_of(tmp_path / "in", NAMES), tmp_path / "out")
    BlockEncoder(job, lambda _: StandIn())(Block(0, 1))
    # What a kill leaves behind.
    (tmp_path / "out" / ".partial-x").write_bytes(b"half")
    job, folder = prepared(tmp_path / "in", tmp_path / "out")
    assert encode(job, folder, StandIn()) == 2
    assert [row["id"] for row in rows(tmp_path / "out")] == NAMES


def test_a_block_that_is_there_is_not_encoded_again(tmp_path: Path) -> None:
    job, _ = prepared(folder_of(tmp_path / "in", NAMES, bad=["00.png"]), tmp_path / "out")
    BlockEncoder(job, lambda _: StandIn())(Block(0, 0))
    (tmp_path / "log").mkdir()
    done = BlockEncoder(job, lambda _: StandIn(log=str(tmp_path / "log")))(Block(0, 0))
    assert (done.images, done.errors, list((tmp_path / "log").iterdir())) == (4, 1, [])


def test_an_image_that_ends_every_process_becomes_a_row_in_the_end(tmp_path: Path) -> None:
    class Deadly(StandIn):
        def encode(self, image: bytes, *, resolution: tuple[int, int]) -> Any:
            if image == b"02.png":
                raise SystemExit  # as far as the block's files can tell
            return super().encode(image, resolution=resolution)

    job, folder = prepared(folder_of(tmp_path / "in", NAMES[:4]), tmp_path / "out")
    lives = 0
    while not folder.done():
        lives += 1
        assert lives < 10
        with contextlib.suppress(SystemExit):
            BlockEncoder(job, lambda _: Deadly())(Block(0, 0))
    found = rows(tmp_path / "out")
    assert [row["error"] for row in found] == [None, None, "internal", None]
    assert "process ended" in found[2]["error_message"]
    assert list((tmp_path / "out" / "_begun").iterdir()) == []


def test_new_images_of_a_folder_are_added_and_old_ones_left_alone(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", NAMES[::2])
    corpus(source, tmp_path / "out")
    folder_of(source, NAMES)
    job, folder = prepared(source, tmp_path / "out")
    assert encode(job, folder, StandIn()) == 2
    assert [row["id"] for row in rows(tmp_path / "out")] == NAMES[::2] + NAMES[1::2]
    assert folder.add(items(str(source))) == 0


def test_a_list_of_many_items_is_read_block_by_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("build.corpus_plan.GROUP", 6)  # not a multiple of the block
    _, folder = prepared(folder_of(tmp_path / "in", NAMES), tmp_path / "out")
    blocks = folder.blocks(4)
    assert [count for _, count in blocks] == [4, 4, 2]
    found = [item.id for block, _ in blocks for item in folder.items(block, 4)]
    assert found == NAMES


def test_a_folder_of_another_model_is_refused_with_both_named(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", NAMES)
    corpus(source, tmp_path / "out")
    with pytest.raises(BuildError, match=r"with block 4, and this job has 8"):
        Folder(str(tmp_path / "out")).begin(about(source, block=8))


@pytest.mark.parametrize("text", ["", "[]", '{"format": 1}', '{"resolution": [1, 2]}'])
def test_a_folder_of_another_format_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "_corpus.json").write_text(text)
    with pytest.raises(BuildError, match="not of a corpus of this version"):
        Folder(str(tmp_path)).about()


def test_a_full_disk_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        Folder(str(tmp_path)).write("a", b"b")
    assert list(tmp_path.iterdir()) == []


def test_rows_do_not_say_more_than_the_schema(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", NAMES[:1])
    corpus(source, tmp_path / "out")
    table = pq.read_table(tmp_path / "out")
    assert table.schema.field("pooled_embedding").type.list_size == DIMS
    assert json.loads((tmp_path / "out" / "_corpus.json").read_text())["source"] == str(source)


def test_the_estimate_is_what_a_few_images_took_times_their_number(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures(tmp_path / "in", 9, 1)
    words = [str(tmp_path / "in"), "--model", str(model), "--estimate", "1000000"]
    assert command.main([*words, "--price", "0.01", "0.05"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["measured"].startswith("9 images at ")
    assert lines["time"].split(" ")[2:5] == ["for", "1,000,000", "images,"]
    low, high = (float(lines["price"].split()[place].replace(",", "")) for place in (0, 2))
    assert low * 5 == pytest.approx(high, abs=0.05)
    assert lines["disk"].endswith("of Parquet")
    with pytest.raises(SystemExit):
        command.main([*words, "--out", str(tmp_path)])


def test_without_ray_the_command_says_what_to_install(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "build.corpus_ray", None)
    pictures(tmp_path / "in", 1, 0)
    words = [str(tmp_path / "in"), "--model", str(model), "--out", str(tmp_path / "out")]
    assert command.main(words) == 1
    assert "Install the extra" in capsys.readouterr().err
    assert command.main([*words, "--resolution", "3"]) == 1
    assert "the resolution must be one of" in capsys.readouterr().err


def test_object_storage_is_listed_read_and_written_like_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def storage(place: str | Path) -> tuple[Any, str]:
        return pafs.SubTreeFileSystem("/", pafs.LocalFileSystem()), str(place).strip("/")

    monkeypatch.setattr("build.corpus_plan.file_system", storage)
    monkeypatch.setattr("build.corpus_source.file_system", storage)
    source = folder_of(tmp_path / "in", [*NAMES, "a/b.png", ".hidden.png", "a/.c/d.png"])
    corpus(source, tmp_path / "out")
    assert [row["id"] for row in rows(tmp_path / "out")] == [*NAMES, "a/b.png"]
