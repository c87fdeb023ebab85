"""What a corpus is made of: folders, lists, and Parquet files that hold images."""

import csv
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from build import corpus_source
from build.corpus_source import Item, Reader, items
from build.errors import BuildError
from sidecar.errors import ImageUnreadable, RequestTooLarge
from tests.corpus.stand_in import folder_of


def written(path: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    pq.write_table(pa.Table.from_pylist(list(rows)), path, row_group_size=2)
    return path


def read(source: Path) -> dict[str, bytes]:
    reader = Reader(str(source))
    return {item.id: reader.read(item) for item in items(str(source))}


def test_a_folder_is_its_images_at_any_depth_but_no_hidden_ones(tmp_path: Path) -> None:
    folder_of(tmp_path, ["b.png", "a/c.JPG", ".d/e.png", "._b.png", "notes.txt"])
    assert read(tmp_path) == {"a/c.JPG": b"a/c.JPG", "b.png": b"b.png"}


def test_a_folders_url_gives_the_same_ids(tmp_path: Path) -> None:
    folder_of(tmp_path, ["b.png", "a/c.JPG"])
    found = items(tmp_path.as_uri())
    assert [item.id for item in found] == [item.id for item in items(str(tmp_path))]


def test_a_csv_list_has_paths_from_its_own_folder_ids_and_metadata(tmp_path: Path) -> None:
    folder_of(tmp_path, ["x/1.png", "x/2.png"])
    with (tmp_path / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["id", "path", "ward"], ["one", "x/1.png", "3"]])
    (item,) = items(str(tmp_path / "list.csv"))
    assert (item.id, json.loads(item.metadata)) == ("one", {"ward": "3"})
    assert Reader(str(tmp_path / "list.csv")).read(item) == b"x/1.png"


def test_a_parquet_list_may_lack_ids_and_hold_urls(tmp_path: Path) -> None:
    folder_of(tmp_path, ["1.png"])
    url = (tmp_path / "1.png").as_uri()
    source = written(tmp_path / "list.parquet", [{"path": url, "age": 71, "seen": None}])
    (item,) = items(str(source))
    assert (item.id, item.metadata) == (url, '{"age":71}')
    assert Reader(str(source)).read(item) == b"1.png"


def test_parquet_with_image_bytes_is_read_row_by_row(tmp_path: Path) -> None:
    rows = [{"id": f"i{n}", "image": f"{n}".encode(), "n": n} for n in range(5)]
    source = written(tmp_path / "images.parquet", rows)
    assert read(source) == {f"i{n}": f"{n}".encode() for n in range(5)}
    backwards = list(items(str(source)))[::-1]
    assert Reader(str(source)).read(backwards[0]) == b"4"
    assert json.loads(backwards[0].metadata) == {"n": 4}


def test_images_may_be_structs_as_in_hugging_face_datasets(tmp_path: Path) -> None:
    rows: list[dict[str, object]]
    rows = [{"image": {"bytes": b"one", "path": "1.png"}}, {"image": {"bytes": None, "path": ""}}]
    written(tmp_path / "a.parquet", rows)
    found = list(items(str(tmp_path)))
    assert [item.id for item in found] == ["a.parquet:0", "a.parquet:1"]
    reader = Reader(str(tmp_path))
    assert reader.read(found[0]) == b"one"
    with pytest.raises(ImageUnreadable, match="no bytes"):
        reader.read(found[1])


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    reader = Reader(str(tmp_path))
    for name in ("pipe.png", "missing.png", "."):
        with pytest.raises(ImageUnreadable):
            reader.read(Item(name, str(tmp_path / name), -1, "{}"))


def test_a_file_beyond_the_sidecars_limit_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus_source, "MAX_FILE_BYTES", 3)
    folder_of(tmp_path, ["long.png"])
    (item,) = items(str(tmp_path))
    with pytest.raises(RequestTooLarge, match="has 8 bytes; 3 are allowed"):
        Reader(str(tmp_path)).read(item)


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("missing", None, "there is no "),
        ("notes.txt", "x", "none of these"),
        ("list.csv", "id,name\n1,2\n", "no column path"),
        ("list.csv", "id,path\n1\n", "another number of columns"),
        ("list.csv", "id,path\n1,a.png\n1,b.png\n", "twice"),
        ("list.csv", f"id,path\n{'x' * 300},a.png\n", "1 to 256 bytes"),
        ("list.csv", "id,path,m\n1,a.png,\udcff\n", "no CSV in UTF-8"),
        ("list.parquet", "x", "no Parquet"),
        ("s4://bucket", None, "expected a path, or a URL"),
    ],
)
def test_what_is_no_source_is_told_in_a_sentence(
    tmp_path: Path, name: str, content: str | None, why: str
) -> None:
    source = name if "://" in name else str(tmp_path / name)
    if content is not None:
        Path(source).write_text(content, "utf-8", "surrogateescape")
    with pytest.raises(BuildError, match=why):
        list(items(source))
