"""`index` and `search` as a person runs them, on the module or the frozen program."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sidecar import contact_sheet, library
from sidecar.contact_sheet import Entry
from sidecar.places import Pair
from tests import client
from tests.client import StdioClient


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five images in two folders, and a few things that are none."""
    images = tmp_path / "images"
    (images / "below").mkdir(parents=True)
    for number in range(5):
        colours = np.random.default_rng(number).integers(0, 256, (4, 4, 3), np.uint8)
        where = images / "below" if number > 2 else images
        picture = Image.fromarray(colours).resize((64, 64), Image.Resampling.NEAREST)
        picture.save(where / f"page {number}.png")
    (images / "bad.jpg").write_bytes(b"not an image")
    (images / "._page 1.png").write_bytes(b"of a Mac")
    (images / "notes.txt").write_text("no image")
    return images


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return client.run_cli(*words)


def index(model: Path, folder: Path, *more: str | Path) -> subprocess.CompletedProcess[str]:
    where = folder.parent / "cases"
    return run("index", folder, "--model", model, "--collection", where, *more)


def search(
    model: Path, folder: Path, image: str, *more: str | Path
) -> subprocess.CompletedProcess[str]:
    where = folder.parent / "cases"
    return run("search", folder / image, "--model", model, "--collection", where, *more)


def found(model: Path, folder: Path, image: str, *more: str) -> list[str]:
    done = search(model, folder, image, "--json", *more)
    assert done.returncode == 0, done.stderr
    return [match["id"] for match in json.loads(done.stdout)["matches"]]


def test_a_folder_becomes_a_collection_and_goes_on_where_it_was(model: Path, folder: Path) -> None:
    moved = folder.parent / "page 4.png"
    (folder / "below" / "page 4.png").rename(moved)
    first = index(model, folder)
    assert first.returncode == 1
    assert "4 added, 0 there already, 1 bad; 4 cases in the collection" in first.stdout
    assert "bad  bad.jpg: image.unreadable: " in first.stdout
    assert "4 of 5, 1 bad" in first.stderr or "5 of 5, 1 bad" in first.stderr
    moved.rename(folder / "below" / "page 4.png")
    (folder / "bad.jpg").unlink()
    again = index(model, folder)
    assert again.returncode == 0, again.stderr
    assert "1 added, 4 there already, 0 bad; 5 cases" in again.stdout
    assert found(model, folder, "below/page 4.png")[0] == "below/page 4.png"
    assert sorted(path.name for path in folder.parent.iterdir()) == ["cases", "images"]


def test_the_table_shows_ranks_and_metadata(model: Path, folder: Path) -> None:
    (folder / "bad.jpg").unlink()
    rows = [{"id": "page 1.png", "age": 71}, {"id": "of no image", "age": 1}]
    lines = folder.parent / "lines.jsonl"
    lines.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    done = index(model, folder, "--metadata", lines)
    assert "1 ids of the metadata belong to no image, such as of no image" in done.stdout
    table = search(model, folder, "page 1.png", "-k", "2").stdout.splitlines()
    assert table[0].split() == ["rank", "similarity", "id", "metadata"]
    assert table[1].split()[0] == "1"
    assert 'page 1.png  {"age":71}' in table[1]
    assert len(table) == 3


def test_metadata_come_from_csv_too(model: Path, folder: Path) -> None:
    table = folder.parent / "table.csv"
    table.write_text('\ufeffid,name\npage 1.png,"a, b"\n', encoding="utf-8")
    index(model, folder, "--metadata", table)
    done = search(model, folder, "page 1.png", "-k", "1", "--json")
    assert json.loads(done.stdout)["matches"][0]["metadata"] == {"name": "a, b"}


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("x.csv", "id,a\n1\n", "line 2 has another number of columns"),
        ("x.csv", "id,a\n1,2,3\n", "line 2 has another number of columns"),
        ("x.csv", "name\na\n", "line 2: the id of a case must be text"),
        ("x.csv", "id\na\na\n", "the id a twice"),
        ("x.jsonl", "{\n", "line 1 is no JSON."),
        ("x.jsonl", "[]\n", "line 1 is no JSON object"),
        ("x.jsonl", '{"id": "a", "n": NaN}\n', "line 1: metadata must be a JSON object"),
    ],
)
def test_metadata_that_are_none_are_told_by_line(
    model: Path, folder: Path, name: str, text: str, said: str
) -> None:
    path = folder.parent / name
    path.write_text(text)
    done = index(model, folder, "--metadata", path)
    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr
    assert not (folder.parent / "cases").exists()


def test_two_images_of_one_id_are_refused(model: Path, folder: Path) -> None:
    done = run(
        *("index", folder, folder / "page 1.png", "--model", model),
        *("--collection", folder.parent / "cases"),
    )
    assert done.returncode == 1
    assert "two images would have the id page 1.png" in done.stderr


def test_a_search_takes_the_resolution_of_the_collection(model: Path, folder: Path) -> None:
    index(model, folder, "--resolution", "224")
    assert found(model, folder, "page 1.png")[0] == "page 1.png"
    refused = index(model, folder, "--resolution", "448")
    assert "collection.mismatch: " in refused.stderr


def test_command_and_wire_find_the_same_cases_in_the_same_order(model: Path, folder: Path) -> None:
    index(model, folder)
    by_command = found(model, folder, "page 2.png")
    with StdioClient(model) as sidecar:
        reply = sidecar.ask(
            "collection.search",
            {"image": (folder / "page 2.png").read_bytes()},
            {"collection": str(folder.parent / "cases"), "outputs": []},
        )
    matches = json.loads(reply.arrays["matches"].tobytes())
    assert [match["id"] for match in matches] == by_command


def test_the_contact_sheet_shows_query_and_matches(model: Path, folder: Path) -> None:
    index(model, folder)
    out = folder.parent / "sheet.png"
    done = search(model, folder, "page 1.png", "-k", "3", "--out", out)
    assert done.returncode == 0, done.stderr
    assert "were not found" not in done.stderr
    with Image.open(out) as sheet:
        pixels = np.asarray(sheet.convert("RGB"))
    side, gap, caption = contact_sheet.SIDE, contact_sheet.GAP, contact_sheet.CAPTION
    left = pixels[gap + caption :, gap:][:side, :side]
    right = pixels[gap + caption :, gap + side + gap // 2 :][:side, :side]
    assert np.array_equal(left, right)  # the image itself is its best match
    folder.rename(folder.with_name("moved"))
    done = search(model, folder.with_name("moved"), "page 1.png", "--out", out)
    assert "5 of 5 images were not found; --images DIR" in done.stderr
    more = ("--out", out, "--images", folder.with_name("moved"))
    done = search(model, folder.with_name("moved"), "page 1.png", *more)
    assert "were not found" not in done.stderr


def test_boxes_are_drawn_where_the_pairs_are() -> None:
    white = np.full((contact_sheet.SIDE, contact_sheet.SIDE, 3), 255, np.uint8)
    pair = Pair((0, 0, 0.25, 0.25), (0.5, 0.5, 0.75, 0.75), 0.9)
    plain = contact_sheet.draw(white, [Entry("a", white, ())])
    drawn = contact_sheet.draw(white, [Entry("a", white, (pair,))])
    rows, columns = np.nonzero((plain != drawn).any(axis=2))
    top, left = contact_sheet.GAP + contact_sheet.CAPTION, contact_sheet.GAP
    half = contact_sheet.SIDE // 2
    assert (rows.min() - top, columns.min() - left) == (1, 1)
    assert rows.max() - top < half * 1.5
    assert columns.max() < left + contact_sheet.SIDE + contact_sheet.GAP // 2 + half * 1.5


def test_an_id_leads_out_of_no_folder(tmp_path: Path) -> None:
    class Loaded:
        def thumbnail(self, data: bytes, side: int) -> None:
            raise AssertionError("a file outside was read")

    (tmp_path / "images").mkdir()
    (tmp_path / "secret.png").write_bytes(b"x")
    for id in ("../secret.png", str(tmp_path / "secret.png"), "a/../../secret.png", "a\0b"):
        assert library._image(Loaded(), [tmp_path / "images"], id, 8) is None  # type: ignore[arg-type]


def test_what_others_chose_cannot_steer_the_terminal() -> None:
    assert library.printable("a\x1b[2J\r\n\u202eb") == "a\\x1b[2J\\r\\n\\u202eb"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(5, "5 s"), (89, "89 s"), (90, "2 min"), (5399, "90 min"), (5400, "1.5 h")],
)
def test_a_duration_has_one_unit(seconds: float, words: str) -> None:
    assert library.duration(seconds) == words
