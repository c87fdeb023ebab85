"""The file of a collection when it is mistreated: killed, cut, changed, locked, full, read-only."""

import json
import multiprocessing
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sidecar import case_store
from sidecar.case_store import APPLICATION_ID, SCHEMA_VERSION, About
from sidecar.collection import Collection, OpenCollections, Vectors
from sidecar.errors import (
    CollectionBusy,
    CollectionDiskFull,
    CollectionMismatch,
    CollectionNotFound,
    CollectionReadOnly,
    CollectionUnreadable,
    SidecarError,
)
from tests import collection_kills

DIMS = 32
ABOUT = About("a" * 64, "projector", (448, 448), DIMS)


def vectors(seed: int, dims: int = DIMS) -> Vectors:
    tokens = np.random.default_rng(seed).normal(size=(256, dims)).astype(np.float32)
    return Vectors.of(tokens.mean(0), tokens)


def fill(path: Path, count: int = 5, about: About = ABOUT) -> Path:
    """A closed collection of cases named "case 0" and so on."""
    collection = Collection.open(path, about, create=True)
    with collection.store.writing():
        for number in range(count):
            collection.add(f"case {number}", vectors(number, about.dims), {"number": number})
    collection.close()
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "collections"
    folder.mkdir()
    return folder / "cases"


@pytest.fixture
def abandoned(path: Path) -> Path:
    """A collection whose writer was killed: the last case is in the WAL beside it."""
    fill(path)
    code = (
        "import os; from pathlib import Path; from tests.sidecar.test_collection_file import *\n"
        f"collection = Collection.open(Path({str(path)!r}), ABOUT)\n"
        "collection.add('last', vectors(99), {}); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=collection_kills.ROOT, check=False)
    assert path.with_name("cases-wal").stat().st_size > 0
    return path


def ids(path: Path, **how: Any) -> list[str]:
    collection = Collection.open(path, ABOUT, **how)
    found = sorted(case.id for case in collection.store.cases())
    collection.close()
    return found


def state(folder: Path) -> dict[str, tuple[bytes, int]]:
    """The bytes of every file, and when each was changed."""
    return {f.name: (f.read_bytes(), f.stat().st_mtime_ns) for f in folder.iterdir()}


def as_nobody(act: Callable[[], object]) -> str:
    """The code that `act` ends with, or ok, in a process without root's rights."""

    def run(pipe: Any) -> None:
        if os.getuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        try:
            act()
        except SidecarError as error:
            pipe.send(error.code)
        except BaseException as error:
            pipe.send(repr(error))
        else:
            pipe.send("ok")

    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=run, args=(theirs,))
    child.start()
    assert ours.poll(60)
    answer = str(ours.recv())
    child.join()
    return answer


@pytest.fixture
def reachable(path: Path) -> Iterator[Path]:
    """`path`, in folders that every user may enter."""
    changed = []
    folder = path.parent
    while folder != Path(folder.anchor):
        mode = folder.stat().st_mode
        if not mode & 0o001:
            folder.chmod(mode | 0o055)
            changed.append((folder, mode))
        folder = folder.parent
    yield path
    for folder, mode in changed:
        folder.chmod(mode)


def test_a_closed_collection_is_one_file_that_a_copy_replaces(path: Path) -> None:
    fill(path)
    assert [name.name for name in path.parent.iterdir()] == ["cases"]
    copy = shutil.copy(path, path.with_name("copy"))
    assert ids(Path(copy)) == [f"case {number}" for number in range(5)]


def test_reading_changes_nothing(path: Path) -> None:
    fill(path, 40)
    before = state(path.parent)
    collection = Collection.open(path, ABOUT)
    assert collection.search(vectors(3), regions=True)[0].id == "case 3"
    collection.close()
    assert state(path.parent) == before


def test_kills_lose_nothing_that_was_acknowledged(path: Path) -> None:
    assert collection_kills.run(8, path.parent) >= 0


def test_what_a_killed_writer_left_is_there_again(abandoned: Path) -> None:
    assert "last" in ids(abandoned)
    assert [name.name for name in abandoned.parent.iterdir()] == ["cases"]


def test_what_a_killed_writer_left_is_there_for_a_reader(abandoned: Path) -> None:
    assert "last" in ids(abandoned, read_only=True)


def test_a_second_process_is_told_at_once(path: Path) -> None:
    fill(path)
    first = Collection.open(path, ABOUT)
    for read_only in (False, True):
        code = (
            "from pathlib import Path; from tests.sidecar.test_collection_file import *\n"
            f"try: Collection.open(Path({str(path)!r}), ABOUT, read_only={read_only})\n"
            "except CollectionBusy as error: print(error.code, error.retryable)"
        )
        words = [sys.executable, "-c", code]
        run = subprocess.run(
            words, cwd=collection_kills.ROOT, check=False, capture_output=True, text=True
        )
        assert run.stdout == "collection.busy True\n", run.stderr
    first.close()


def test_readers_share_a_collection_and_keep_writers_out(path: Path) -> None:
    fill(path)
    with_two = [Collection.open(path, ABOUT, read_only=True) for _ in range(2)]
    assert [reader.count for reader in with_two] == [5, 5]
    with pytest.raises(CollectionBusy):
        Collection.open(path, ABOUT)
    for reader in with_two:
        reader.close()


def test_a_reader_writes_nothing(path: Path) -> None:
    fill(path)
    before = state(path.parent)
    collection = Collection.open(path, ABOUT, read_only=True)
    with pytest.raises(CollectionReadOnly):
        collection.add("another", vectors(9), {})
    with pytest.raises(CollectionReadOnly):
        collection.remove("case 1")
    collection.close()
    assert state(path.parent) == before


def test_a_read_only_folder_can_be_searched_and_not_changed(reachable: Path) -> None:
    fill(reachable)
    reachable.chmod(0o444)
    reachable.parent.chmod(0o555)
    before = state(reachable.parent)

    def search() -> None:
        collection = Collection.open(reachable, ABOUT)
        assert collection.search(vectors(2))[0].id == "case 2"

    assert as_nobody(search) == "ok"
    assert (
        as_nobody(lambda: Collection.open(reachable, ABOUT).add("x", vectors(9), {}))
        == "collection.read_only"
    )
    assert state(reachable.parent) == before
    reachable.parent.chmod(0o755)


def test_a_read_only_folder_with_a_killed_writers_wal_is_refused(
    reachable: Path, abandoned: Path
) -> None:
    for name in abandoned.parent.iterdir():
        name.chmod(0o444)
    abandoned.parent.chmod(0o555)
    before = state(abandoned.parent)
    assert as_nobody(lambda: Collection.open(abandoned, ABOUT)) == "collection.read_only"
    assert state(abandoned.parent) == before
    abandoned.parent.chmod(0o755)


def test_a_new_collection_in_a_read_only_folder_is_refused(reachable: Path) -> None:
    reachable.parent.chmod(0o555)
    code = as_nobody(lambda: Collection.open(reachable, ABOUT, create=True))
    assert code == "collection.read_only"
    reachable.parent.chmod(0o755)


def _text(path: Path) -> None:
    path.write_text("not a collection, but a text of more than a hundred letters " * 3)


def _short_text(path: Path) -> None:
    path.write_text("short")


def _cut(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def _cut_in_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


def _another_database(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as db:
        db.execute("create table notes(text)")
    db.close()


def _newer(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute(f"pragma user_version={SCHEMA_VERSION + 1}")
    db.close()


def _without_tables(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as db:
        db.execute(f"pragma application_id={APPLICATION_ID}")
        db.execute(f"pragma user_version={SCHEMA_VERSION}")
    db.close()


def _with_a_trigger(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("create trigger t after delete on cases begin delete from texts; end")
    db.close()


def _changed_about(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"projector", b"projectox"))


@pytest.mark.parametrize(
    "spoil",
    [
        *(_text, _short_text, _cut, _cut_in_header, _another_database, _newer),
        *(_without_tables, _with_a_trigger, _changed_about),
    ],
)
def test_a_file_that_is_no_whole_collection_is_refused_and_left_alone(
    path: Path, spoil: Callable[[Path], None]
) -> None:
    fill(path, 40)
    spoil(path)
    before = state(path.parent)
    for create in (False, True):
        with pytest.raises(CollectionUnreadable):
            Collection.open(path, ABOUT, create=create)
    assert state(path.parent) == before


def test_a_collection_keeps_its_vectors_as_it_was_made_to(path: Path) -> None:
    """In 16 bits: found, repeated, refitted, checked and removed like those in 8."""
    about = About("a" * 64, "projector", (448, 448), DIMS, "int16")
    fill(path, 70, about)
    size = path.stat().st_size
    collection = Collection.open(path, ABOUT)  # whoever opens it need not know
    assert collection.store.about.precision == "int16"
    assert collection.store.vector(7)["codes"].dtype == np.int16
    assert np.allclose(
        collection.store.vector(7)["scale"] * collection.store.vector(7)["codes"].astype(float),
        vectors(7).pooled,
        atol=1e-5,
    )
    metadata = json.loads(next(collection.store.cases()).metadata)
    assert not collection.add("case 0", vectors(0), metadata)
    assert collection.search(vectors(7), regions=True)[0].id == "case 7"
    record = collection.store.vector(7).tobytes()
    collection.remove("case 8")
    collection.close()
    assert size > fill(path.with_name("8 bits"), 70).stat().st_size
    data = bytearray(path.read_bytes())
    data[data.index(record) + len(record) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CollectionUnreadable):
        read_all(path)


def test_vectors_of_a_kind_that_is_not_known_are_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(case_store.PRECISIONS, "int4", "<i1")
    Collection.open(path, About("a" * 64, "x", (448, 448), DIMS, "int4"), create=True).close()
    monkeypatch.undo()
    before = state(path.parent)
    with pytest.raises(CollectionUnreadable, match="int4"):
        Collection.open(path, ABOUT)
    assert state(path.parent) == before


def test_a_folder_is_no_collection(path: Path) -> None:
    with pytest.raises(CollectionUnreadable):
        Collection.open(path.parent, ABOUT)


@pytest.mark.parametrize("name", ["absent", "no/such/folder", "cases/below-a-file"])
def test_what_is_not_there_is_not_made_by_a_search(path: Path, name: str) -> None:
    fill(path)
    before = state(path.parent)
    with pytest.raises(CollectionNotFound):
        Collection.open(path.parent / name, ABOUT)
    assert state(path.parent) == before


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (About("b" * 64, "projector", (448, 448), DIMS), ("a" * 64, "b" * 64)),
        (About("a" * 64, "linear", (448, 448), DIMS), ("projector", "linear")),
        (About("a" * 64, "projector", (896, 448), DIMS), ("448 x 448", "896 x 448")),
        (About("a" * 64, "projector", (448, 448), 16), (str(DIMS), "16")),
    ],
)
def test_another_origin_is_refused_with_both_named(
    path: Path, other: About, named: tuple[str, str]
) -> None:
    fill(path)
    before = state(path.parent)
    with pytest.raises(CollectionMismatch) as told:
        Collection.open(path, other)
    assert all(name in str(told.value) for name in named)
    assert state(path.parent) == before


def test_a_changed_byte_is_found_wherever_it_is(path: Path) -> None:
    """In a record: each byte of one vector, and a byte of what lies in all other places."""
    fill(path, 70)
    whole = path.read_bytes()
    collection = Collection.open(path, ABOUT)
    record = collection.store.vector(7).tobytes()
    collection.close()
    start = whole.index(record)
    draws = np.random.default_rng(0)
    for place in range(start, start + len(record)):
        data = bytearray(whole)
        data[place] ^= int(draws.integers(1, 256))
        path.write_bytes(data)
        with pytest.raises(CollectionUnreadable):
            read_all(path)
        assert path.read_bytes() == bytes(data)
    path.write_bytes(whole)
    read_all(path)


@pytest.mark.parametrize("what", ["case 7", '{"number":7}'])
def test_a_changed_id_or_metadata_is_found(path: Path, what: str) -> None:
    fill(path)
    fill(path, 0)
    collection = Collection.open(path, ABOUT)
    collection.add("case 7", vectors(7), {"number": 7})
    collection.close()
    data = path.read_bytes()
    assert data.count(what.encode()) == 1
    path.write_bytes(data.replace(what.encode(), what.replace("7", "8").encode()))
    with pytest.raises(CollectionUnreadable):
        read_all(path)


def test_a_damaged_collection_is_not_written_to(path: Path) -> None:
    fill(path)
    data = path.read_bytes()
    path.write_bytes(data.replace(b'{"number":3}', b'{"number":4}'))
    before = state(path.parent)
    collection = Collection.open(path, ABOUT)
    with pytest.raises(CollectionUnreadable):
        collection.search(vectors(0))
    with pytest.raises(CollectionUnreadable):
        collection.add("another", vectors(9), {})
    with pytest.raises(CollectionUnreadable):
        collection.remove("case 1")
    collection.close()
    assert state(path.parent) == before


def read_all(path: Path) -> None:
    collection = Collection.open(path, ABOUT)
    try:
        found = collection.search(vectors(0), k=100, regions=True)
        assert len(found) == collection.count
    finally:
        collection.close()


def test_removed_cases_leave_no_byte(path: Path) -> None:
    """Ids, metadata, vectors and regions, in pieces of 12 bytes, in the file and beside it."""
    collection = Collection.open(path, ABOUT, create=True)
    names = [f"patient-{number * 7919:08d}-of-the-ward" for number in range(300)]
    with collection.store.writing():
        for number, name in enumerate(names[:60]):
            collection.add(name, vectors(number), {"name": f"name-{name}"})
    early = removed_pieces(collection, names[5], vectors(5))
    collection.remove(names[5])
    with collection.store.writing():
        for number, name in enumerate(names[60:], 60):
            collection.add(name, vectors(number), {"name": f"name-{name}"})
    pieces = list(early)
    for number in range(60, 300, 3):
        pieces += removed_pieces(collection, names[number], vectors(number))
        collection.remove(names[number])
    kept = removed_pieces(collection, names[7], vectors(7))
    for step in ("open", "closed"):
        if step == "closed":
            collection.close()
        data = b"".join(content for content, _ in state(path.parent).values())
        assert not [piece for piece in pieces if piece in data]
        assert sum(piece in data for piece in kept) > len(kept) / 2  # or the search finds nothing


def removed_pieces(collection: Collection, id: str, of: Vectors) -> list[bytes]:
    """What must be gone once the case is removed."""
    case = collection.store.find(id)
    assert case is not None
    vector = collection.store.vector(case.slot)["codes"].tobytes()
    number = id[8:16].encode()
    whole = [vector[i : i + 12] for i in range(0, len(vector) - 12, 6)]
    basis = collection._known_basis()
    if basis is not None:
        size = 16 * (2 + basis.dims)
        regions = collection.store.regions(case.slot, size)
    else:
        regions = dict(collection.store.early_regions())[case.slot]
    return [number, *whole, *(regions[i : i + 12] for i in range(2, len(regions) - 12, 97))]


def test_a_full_disk_is_one_clear_error_and_reads_go_on(path: Path) -> None:
    """SQLite's own limit stands in for the disk's end: the error is the same."""
    fill(path)
    collection = Collection.open(path, ABOUT)
    pages = collection.store._db.execute("pragma page_count").fetchone()[0]
    collection.store._db.execute(f"pragma max_page_count={pages}")
    there, full = {case.id for case in collection.store.cases()}, None
    for number in range(100, 600):
        try:
            collection.add(f"case {number}", vectors(number), {"text": "x" * 1000})
        except CollectionDiskFull as error:
            full = error
            break
        there.add(f"case {number}")
    assert full is not None
    assert not full.retryable
    assert {case.id for case in collection.store.cases()} == there
    assert collection.search(vectors(2))[0].id == "case 2"
    collection.close()
    assert set(ids(path)) == there


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a small disk of its own")
def test_a_disk_that_is_really_full(path: Path) -> None:
    code = f"""
import subprocess, sys
from pathlib import Path
from tests.sidecar.test_collection_file import *
folder = Path({str(path.parent)!r})
if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder]).returncode:
    sys.exit(77)
collection = Collection.open(folder / "cases", ABOUT, create=True)
there = []
try:
    for number in range(5000):
        collection.add(f"case {{number}}", vectors(number), {{"text": "x" * 5000}})
        there.append(f"case {{number}}")
except CollectionDiskFull:
    pass
else:
    sys.exit("the disk was never full")
assert collection.search(vectors(2))[0].id == "case 2"
collection.close()
assert ids(folder / "cases") == sorted(there), "something is lost"
(folder / "cases").unlink()
"""
    words = ["unshare", "--user", "--map-root-user", "--mount", sys.executable, "-c", code]
    try:
        run = subprocess.run(
            words, cwd=collection_kills.ROOT, check=False, capture_output=True, text=True
        )
    except FileNotFoundError:
        pytest.skip("no unshare here")
    if run.returncode == 77 or run.stderr.startswith("unshare:"):
        pytest.skip("no disk can be mounted here")
    assert run.returncode == 0, run.stderr


def test_one_process_opens_a_file_once_whatever_its_name(path: Path) -> None:
    fill(path)
    link = path.with_name("link")
    link.symlink_to(path)
    opened = OpenCollections()
    assert opened.get(path, ABOUT) is opened.get(link, ABOUT)
    opened.close()


def test_a_file_that_was_deleted_or_replaced_is_opened_anew(path: Path) -> None:
    fill(path)
    opened = OpenCollections()
    opened.get(path, ABOUT).add("lost with the file", vectors(7), {})
    path.unlink()
    with pytest.raises(CollectionNotFound):
        opened.get(path, ABOUT)
    fill(path, 3)
    assert opened.get(path, ABOUT).count == 3
    opened.close()
    assert ids(path) == ["case 0", "case 1", "case 2"]


def test_many_collections_are_open_in_turn(path: Path) -> None:
    opened = OpenCollections()
    for number in range(20):
        name = path.with_name(f"cases {number % 12}")
        opened.get(name, ABOUT, writes=True).add(f"case {number}", vectors(number), {})
    opened.close()
    assert ids(path.with_name("cases 3")) == ["case 15", "case 3"]
