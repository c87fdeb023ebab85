"""Move a collection that has outgrown one file into LanceDB or Qdrant, both embedded.

    python examples/move_collection.py COLLECTION lancedb|qdrant FOLDER

Each case becomes a row with its id, its metadata, and its whitened vector of unit length, so that
their cosine is the similarity of a search here. FOLDER/whitening.npz makes the same of a query:

    centred = pooled_embedding[0] - mean
    query = centred + ((centred @ components.T) * (gains - 1)) @ components

The collection stays as it is. Needs the package lancedb or qdrant-edge-py. A server of Qdrant takes
the same points by qdrant-client.
"""

import argparse
import itertools
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from sidecar.case_store import Case
from sidecar.collection import Collection
from sidecar.errors import SidecarError
from sidecar.quantised import Floats

BATCH = 1000  # cases at a time: memory stays the same for a million

Cases = list[tuple[Case, Floats]]


def batches(collection: Collection) -> Iterator[Cases]:
    """All cases, some at a time."""
    cases = collection.whitened()
    while batch := list(itertools.islice(cases, BATCH)):
        yield batch


def to_lancedb(collection: Collection, folder: Path) -> None:
    """A table `cases` with the columns id, metadata (JSON) and vector."""
    lancedb, pa = import_module("lancedb"), import_module("pyarrow")
    vector = pa.list_(pa.float32(), collection.store.about.dims)
    fields = [("id", pa.string()), ("metadata", pa.string()), ("vector", vector)]
    table = lancedb.connect(str(folder)).create_table("cases", schema=pa.schema(fields))
    for batch in batches(collection):
        rows = [
            {"id": case.id, "metadata": case.metadata, "vector": vector} for case, vector in batch
        ]
        table.add(rows)


def to_qdrant(collection: Collection, folder: Path) -> None:
    """A shard in FOLDER/cases whose points are slots; id and metadata are their payload."""
    qdrant: Any = import_module("qdrant_edge")
    place = folder / "cases"
    place.mkdir(parents=True)
    dims = collection.store.about.dims
    vectors = {"image": qdrant.EdgeVectorParams(dims, qdrant.Distance.Cosine)}
    shard = qdrant.EdgeShard.create(str(place), qdrant.EdgeConfig(vectors=vectors))
    for batch in batches(collection):
        points = [
            qdrant.Point(
                case.slot,
                {"image": vector.tolist()},
                {"id": case.id, "metadata": case.metadata},
            )
            for case, vector in batch
        ]
        shard.update(qdrant.UpdateOperation.upsert_points(points))
    shard.flush()
    shard.close()


def main() -> int:
    """Move one, and say how many cases there were."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("collection", type=Path)
    parser.add_argument("to", choices=("lancedb", "qdrant"))
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    try:
        collection = Collection.open(options.collection, None, read_only=True)
    except SidecarError as error:
        print(error, file=sys.stderr)
        return 1
    options.folder.mkdir(parents=True, exist_ok=True)
    whitening = collection.whitening()
    np.savez(
        options.folder / "whitening.npz",
        mean=whitening.mean,
        components=whitening.components,
        gains=whitening.gains,
    )
    {"lancedb": to_lancedb, "qdrant": to_qdrant}[options.to](collection, options.folder)
    print(f"{collection.count} cases")
    collection.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
