"""A corpus becomes a collection: what a search finds there, and what a kill costs."""

import json
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from build import collection as builder
from build.collection import build
from build.errors import BuildError
from sidecar.case_store import About
from sidecar.collection import Collection, Vectors
from tests.client import ROOT
from tests.corpus.stand_in import BAD, StandIn, corpus, encode, folder_of, prepared, tokens_of

COUNT = 80
NAMES = [f"{number:03}.png" for number in range(COUNT)]
GOOD = [name for number, name in enumerate(NAMES) if number % 10 != 3]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    source = folder_of(folder / "in", NAMES, bad=set(NAMES) - set(GOOD))
    return corpus(source, folder / "out", block=7)


def query(name: str) -> Vectors:
    """Not quite the image's own vector."""
    tokens = tokens_of(name.encode()) + np.float32(0.01) * tokens_of(b"noise")
    return Vectors.of(tokens.mean(0), tokens)


def found(file: Path, name: str, k: int = 10) -> list[str]:
    collection = Collection.open(file, None, read_only=True)
    try:
        return [match.id for match in collection.search(query(name), k)]
    finally:
        collection.close()


def count(file: Path) -> int:
    collection = Collection.open(file, None, read_only=True)
    try:
        return collection.count
    finally:
        collection.close()


def test_it_has_every_good_row_and_counts_the_errors_by_code(made: Path, tmp_path: Path) -> None:
    report = build([str(made)], tmp_path / "a.cases")
    assert (report.added, report.there) == (len(GOOD), 0)
    assert report.errors == {"image.unreadable": COUNT - len(GOOD)}
    assert found(tmp_path / "a.cases", "005.png")[0] == "005.png"


def test_a_search_finds_what_it_finds_in_a_collection_of_single_adds(
    made: Path, tmp_path: Path
) -> None:
    build([str(made)], tmp_path / "a.cases")
    about = About("m" * 64, "projector", (448, 448), len(query("x").pooled))
    single = Collection.open(tmp_path / "b.cases", about, create=True)
    for name in GOOD:
        tokens = tokens_of(name.encode())
        single.add(name, Vectors.of(tokens.mean(0), tokens), {})
    single.close()
    for name in GOOD[::11]:
        assert found(tmp_path / "a.cases", name, 1) == found(tmp_path / "b.cases", name, 1)


def test_after_a_kill_it_goes_on(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builder, "BATCH", 8)
    add, added = Collection.add, []

    def killed(self: Collection, id: str, *rest: Any) -> bool:
        added.append(id)
        if len(added) == 30:
            raise KeyboardInterrupt
        return add(self, id, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Collection, "add", killed)
        with pytest.raises(KeyboardInterrupt):
            build([str(made)], tmp_path / "a.cases")
    report = build([str(made)], tmp_path / "a.cases")
    assert (report.there, report.added) == (24, len(GOOD) - 24)
    assert count(tmp_path / "a.cases") == len(GOOD)


def test_metadata_come_from_the_rows_or_from_a_file(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", NAMES[:2])
    (tmp_path / "in" / "list.csv").write_text("path,ward\n000.png,3\n001.png,4\n")
    corpus(tmp_path / "in" / "list.csv", tmp_path / "out")
    build([str(tmp_path / "out")], tmp_path / "a.cases")
    (tmp_path / "more.jsonl").write_text('{"id": "000.png", "ward": 7}\n{"id": "x"}\n')
    details = tmp_path / "more.jsonl"
    report = build([str(tmp_path / "out")], tmp_path / "b.cases", metadata=details)
    assert report.strange == 1
    for name, wards in (("a", ["3", "4"]), ("b", [7, None])):
        collection = Collection.open(tmp_path / f"{name}.cases", None, read_only=True)
        cases = sorted(collection.store.cases(), key=lambda case: case.id)
        assert [json.loads(case.metadata).get("ward") for case in cases] == wards
        collection.close()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"id": "a"}\n{"id": "a"}\n', "twice; again in line 2"),
        ('{"name": "a"}\n', "line 1: the id of a case must be text"),
        ("{\n", "no JSON"),
    ],
)
def test_metadata_that_are_wrong_are_told(made: Path, tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "m.jsonl").write_text(text)
    with pytest.raises(BuildError, match=why):
        build([str(made)], tmp_path / "a.cases", metadata=tmp_path / "m.jsonl")


def test_several_corpora_go_together_where_that_is_said(made: Path, tmp_path: Path) -> None:
    other = corpus(folder_of(tmp_path / "in", ["other.png"]), tmp_path / "out")
    both = [str(made), str(other)]
    with pytest.raises(BuildError, match="--merge"):
        build(both, tmp_path / "a.cases")
    build(both, tmp_path / "a.cases", merge=True)
    build([str(made)], tmp_path / "b.cases")
    with pytest.raises(BuildError, match="--merge"):
        build([str(other)], tmp_path / "b.cases")
    build([str(other)], tmp_path / "b.cases", merge=True)
    for name in ("a.cases", "b.cases"):
        assert count(tmp_path / name) == len(GOOD) + 1


def test_an_id_that_two_sources_have_is_told(made: Path, tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", ["000.png"])
    (source / "000.png").write_bytes(b"another image")
    other = corpus(source, tmp_path / "out")
    with pytest.raises(BuildError, match=r"'000\.png' belongs to another case"):
        build([str(made), str(other)], tmp_path / "a.cases", merge=True)


def test_what_is_no_corpus_or_of_another_model_is_refused(made: Path, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="has no rows"):
        build([str(tmp_path)], tmp_path / "a.cases")
    source = folder_of(tmp_path / "in", ["x.png"])
    other = corpus(source, tmp_path / "out")
    (part,) = other.glob("part-*")
    table = pq.read_table(part)
    changed = table.set_column(table.schema.get_field_index("model"), "model", [["n" * 64]])
    pq.write_table(changed, part)
    with pytest.raises(BuildError, match="of different models"):
        build([str(made), str(other)], tmp_path / "a.cases", merge=True)


def test_a_large_corpus_becomes_shards_whose_similarities_compare(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builder, "FIT_AT", (16, 32))  # the sample; so that a shard is larger
    build([str(made)], tmp_path / "whole.cases")
    report = build([str(made)], tmp_path / "a.cases", shard=40)
    assert [file.name for file in report.files] == ["a-000.cases", "a-001.cases"]
    assert [count(file) for file in report.files] == [36, 36]
    again = build([str(made)], tmp_path / "a.cases", shard=40)
    assert (again.added, again.there) == (0, len(GOOD))
    with pytest.raises(BuildError, match="which shard has changed"):
        build([str(made)], tmp_path / "a.cases", shard=30)
    shards = [Collection.open(file, None, read_only=True) for file in report.files]
    first, second = (shard.whitening() for shard in shards)
    assert np.array_equal(first.mean, second.mean)
    assert np.array_equal(first.gains, second.gains)
    for name in GOOD[::11]:
        matches = [match for shard in shards for match in shard.search(query(name), 3)]
        best = max(matches, key=lambda match: match.similarity)
        assert best.id == name
    for shard in shards:
        shard.close()


def test_the_first_cases_are_spread_over_the_corpus(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builder, "FIT_AT", (4, 8))
    build([str(made)], tmp_path / "a.cases")
    collection = Collection.open(tmp_path / "a.cases", None, read_only=True)
    first = [collection.store.case(slot).id for slot in range(8)]
    collection.close()
    assert first == sorted(first)
    assert first[0] < "015.png"
    assert first[-1] > "070.png"


def test_the_command_prints_what_became_of_the_rows(made: Path, tmp_path: Path) -> None:
    words = ["-m", "build.collection", str(made), "--out", str(tmp_path / "a.cases")]
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, check=True, capture_output=True, text=True
    )
    lines = done.stdout.splitlines()
    assert lines[0] == f"{len(GOOD)} added, 0 there already, {COUNT - len(GOOD)} bad"
    assert lines[1] == f"bad  {COUNT - len(GOOD)} image.unreadable"
    words[2] = str(tmp_path / "missing")
    failed = subprocess.run(
        [sys.executable, *words], cwd=ROOT, check=False, capture_output=True, text=True
    )
    assert failed.returncode == 1
    assert failed.stderr.startswith("collection: expected a folder that")


# What others make of the Parquet as it is


def test_columns_of_bytes_and_vectors_survive_where_a_block_is_all_bad(tmp_path: Path) -> None:
    job, folder = prepared(folder_of(tmp_path / "in", NAMES[:8], bad=NAMES[:4]), tmp_path / "out")
    encode(job, folder, StandIn())
    table = pq.read_table(tmp_path / "out")
    assert table["pooled_embedding"].null_count == 4
    assert (tmp_path / "in" / NAMES[0]).read_bytes().startswith(BAD)


@pytest.mark.skipif(find_spec("lancedb") is None, reason="lancedb is not installed")
def test_lancedb_reads_the_parquet_as_it_is(made: Path, tmp_path: Path) -> None:
    lancedb: Any = import_module("lancedb")
    rows = ds.dataset(made).scanner(filter=ds.field("error").is_null()).to_reader()
    table = lancedb.connect(str(tmp_path / "lance")).create_table("corpus", rows)
    wanted = query("005.png").pooled
    search = table.search(wanted, vector_column_name="pooled_embedding").limit(1)
    (row,) = search.distance_type("cosine").to_list()
    assert (row["id"], row["model"], row["resolution"]) == ("005.png", "m" * 64, [448, 448])
    assert table.count_rows() == len(GOOD)


@pytest.mark.skipif(find_spec("qdrant_edge") is None, reason="qdrant-edge-py is not installed")
def test_qdrant_takes_the_rows_as_they_are(made: Path, tmp_path: Path) -> None:
    qdrant: Any = import_module("qdrant_edge")
    dims = len(query("x").pooled)
    (tmp_path / "shard").mkdir()
    vectors = {"image": qdrant.EdgeVectorParams(dims, qdrant.Distance.Cosine)}
    shard = qdrant.EdgeShard.create(str(tmp_path / "shard"), qdrant.EdgeConfig(vectors=vectors))
    names = ["id", "pooled_embedding"]
    ids: list[str] = []
    for batch in ds.dataset(made).to_batches(names, filter=ds.field("error").is_null()):
        points = [
            qdrant.Point(number, {"image": row["pooled_embedding"]}, {"id": row["id"]})
            for number, row in enumerate(batch.to_pylist(), len(ids))
        ]
        ids += batch.column("id").to_pylist()
        shard.update(qdrant.UpdateOperation.upsert_points(points))
    nearest = qdrant.Query.Nearest(query("005.png").pooled.tolist(), using="image")
    request = qdrant.QueryRequest(limit=1, query=nearest, params=qdrant.SearchParams(exact=True))
    assert [ids[point.id] for point in shard.query(request)] == ["005.png"]
    shard.close()
