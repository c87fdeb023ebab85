"""A collection that was moved to another engine finds the same cases in the same order there.

Runs where the engines are installed: `make bench-retrieval` does so.
"""

import json
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sidecar.case_store import About
from sidecar.collection import Collection, Vectors
from sidecar.quantised import Floats
from tests.client import ROOT

DIMS = 32
COUNT = 50


def vectors(seed: int) -> Vectors:
    tokens = np.random.default_rng(seed).normal(size=(256, DIMS)).astype(np.float32) + 1
    return Vectors.of(tokens.mean(0), tokens)


def moved(tmp_path: Path, to: str) -> tuple[Floats, list[str], Path]:
    """A whitened query, the ids that we find for it, and where the cases went."""
    collection = Collection.open(
        tmp_path / "cases", About("a", "linear", (448, 448), DIMS), create=True
    )
    with collection.store.writing():
        for number in range(COUNT):
            collection.add(f"case {number}", vectors(number), {"number": number})
    ours = [match.id for match in collection.search(vectors(99))]
    collection.close()
    folder = tmp_path / to
    words = [
        sys.executable,
        "examples/move_collection.py",
        str(tmp_path / "cases"),
        to,
        str(folder),
    ]
    done = subprocess.run(
        words, cwd=ROOT, check=False, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)}
    )
    assert done.stdout == f"{COUNT} cases\n", done.stderr
    with np.load(folder / "whitening.npz") as kept:
        centred = vectors(99).pooled - kept["mean"]
        scaled = (centred @ kept["components"].T) * (kept["gains"] - 1)
        return centred + scaled @ kept["components"], ours, folder


@pytest.mark.skipif(find_spec("lancedb") is None, reason="lancedb is not installed")
def test_lancedb_finds_the_same_cases(tmp_path: Path) -> None:
    query, ours, folder = moved(tmp_path, "lancedb")
    lancedb: Any = import_module("lancedb")
    table = lancedb.connect(str(folder)).open_table("cases")
    rows = table.search(query).distance_type("cosine").limit(10).to_list()
    assert [row["id"] for row in rows] == ours
    assert json.loads(rows[0]["metadata"]) == {"number": int(ours[0].split()[1])}


@pytest.mark.skipif(find_spec("qdrant_edge") is None, reason="qdrant-edge-py is not installed")
def test_qdrant_finds_the_same_cases(tmp_path: Path) -> None:
    query, ours, folder = moved(tmp_path, "qdrant")
    qdrant: Any = import_module("qdrant_edge")
    shard = qdrant.EdgeShard.load(str(folder / "cases"))
    nearest = qdrant.Query.Nearest(query.tolist(), using="image")
    exact = qdrant.SearchParams(exact=True)
    request = qdrant.QueryRequest(limit=10, query=nearest, params=exact, with_payload=True)
    assert [point.payload["id"] for point in shard.query(request)] == ours
