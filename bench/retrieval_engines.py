"""One engine over one set of vectors, in a process of its own: what it finds, takes and costs.

    python -m bench.retrieval_engines build|search ENGINE WORK FOLDER

WORK holds raw.npy, whitened.npy, regions.npy and queries.npz. Prints one JSON line. The peers get
whitened vectors of unit length, store and search them as their documentation says, and have no
index of approximate neighbours.
"""

import json
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sidecar.case_store import About
from sidecar.collection import Collection, Vectors
from sidecar.quantised import Floats
from sidecar.whitening import FIT_AT, Whitening

QUERIES = 50
K = 10
ADDED = 64  # at a time

Ids = list[int]


@dataclass(frozen=True)
class Data:
    """`raw` and `whitened` [n, dims]; `regions` [m, 16, dims], of which case i takes i modulo m."""

    raw: Floats
    whitened: Floats
    regions: Floats


@dataclass(frozen=True)
class Query:
    raw: Floats  # [dims]
    whitened: Floats


class Engine(Protocol):
    def build(self, data: Data) -> None:
        """Store the vectors, by their number."""

    def open(self) -> None:
        """As a program does that begins now."""

    def search(self, query: Query) -> Ids:
        """The K nearest."""


class Ours:
    """A collection, with regions: as an app has it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "cases"

    def build(self, data: Data) -> None:
        about = About("0" * 64, "projector", (448, 448), data.raw.shape[1])
        collection = Collection.open(self.path, about, create=True)
        for first in range(0, len(data.raw), ADDED):
            with collection.store.writing():
                for number in range(first, min(first + ADDED, len(data.raw))):
                    regions = data.regions[number % len(data.regions)]
                    collection.add(str(number), Vectors(data.raw[number], regions), {"n": number})
        collection.close()

    def open(self) -> None:
        self.collection = Collection.open(self.path, None)

    def search(self, query: Query) -> Ids:
        none = np.zeros((16, len(query.raw)), np.float32)
        return [int(match.id) for match in self.collection.search(Vectors(query.raw, none), K)]


class SqliteVec:
    """One table of sqlite-vec in int8 or float, through apsw: Python's sqlite3 may load nothing."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.path, self.kind = folder / "vectors.db", kind

    def _connect(self) -> Any:
        apsw = import_module("apsw")
        sqlite_vec = import_module("sqlite_vec")

        db = apsw.Connection(str(self.path))
        db.enable_load_extension(True)
        db.load_extension(sqlite_vec.loadable_path())
        return db

    def _value(self, vector: Floats) -> bytes:
        if self.kind == "float":
            return vector.tobytes()
        codes: NDArray[np.int8] = np.rint(vector / np.abs(vector).max() * 127).astype(np.int8)
        return codes.tobytes()

    def _sql(self) -> str:
        return "?" if self.kind == "float" else "vec_int8(?)"

    def build(self, data: Data) -> None:
        db = self._connect()
        column = f"{self.kind}[{data.whitened.shape[1]}] distance_metric=cosine"
        db.execute(f"create virtual table vectors using vec0(v {column})")
        with db:
            for number, vector in enumerate(data.whitened):
                db.execute(
                    f"insert into vectors(rowid, v) values (?, {self._sql()})",
                    (number, self._value(vector)),
                )
        db.close()

    def open(self) -> None:
        self.db = self._connect()

    def search(self, query: Query) -> Ids:
        rows = self.db.execute(
            f"select rowid from vectors where v match {self._sql()} and k = {K} order by distance",
            (self._value(query.whitened),),
        )
        return [row[0] for row in rows]


class Usearch:
    """usearch's exact search over an array of int8 that is mapped into memory."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "vectors.npy"

    def build(self, data: Data) -> None:
        np.save(self.path, self._codes(data.whitened))

    def _codes(self, vectors: Floats) -> NDArray[np.int8]:
        # Of unit length: with the largest number as 127 the cosine keeps most.
        largest = np.abs(vectors).max(axis=-1, keepdims=True)
        codes: NDArray[np.int8] = np.rint(vectors / largest * 127).astype(np.int8)
        return codes

    def open(self) -> None:
        self.usearch = import_module("usearch.index")
        self.vectors = np.load(self.path, mmap_mode="r")

    def search(self, query: Query) -> Ids:
        asked = self._codes(query.whitened)
        found = self.usearch.search(self.vectors, asked, K, "cos", exact=True, threads=1)
        return [int(key) for key in found.keys]


class Lance:
    """LanceDB's embedded mode, without an index."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "lance"

    def build(self, data: Data) -> None:
        lancedb = import_module("lancedb")
        pa = import_module("pyarrow")

        dims = data.whitened.shape[1]
        kind = pa.list_(pa.float32(), dims)
        schema = pa.schema([("id", pa.int64()), ("vector", kind)])
        table = lancedb.connect(str(self.path)).create_table("vectors", schema=schema)
        for first in range(0, len(data.whitened), 10_000):
            part = data.whitened[first : first + 10_000]
            values = pa.FixedSizeListArray.from_arrays(pa.array(part.reshape(-1)), dims)
            ids = pa.array(np.arange(first, first + len(part)))
            table.add(pa.Table.from_arrays([ids, values], schema=schema))

    def open(self) -> None:
        lancedb = import_module("lancedb")

        self.table = lancedb.connect(str(self.path)).open_table("vectors")

    def search(self, query: Query) -> Ids:
        found = self.table.search(query.whitened).distance_type("cosine").select(["id"]).limit(K)
        return [int(row["id"]) for row in found.to_list()]


class Qdrant:
    """Qdrant Edge, Qdrant in the process: exact, vectors on disk and in int8 in memory."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "qdrant"

    def build(self, data: Data) -> None:
        qdrant = import_module("qdrant_edge")

        self.path.mkdir()
        config = qdrant.EdgeConfig(
            vectors={"v": qdrant.EdgeVectorParams(data.whitened.shape[1], qdrant.Distance.Cosine)}
        )
        shard = qdrant.EdgeShard.create(str(self.path), config)
        for first in range(0, len(data.whitened), 1000):
            part = data.whitened[first : first + 1000]
            points = [
                qdrant.Point(first + place, {"v": vector.tolist()}, {})
                for place, vector in enumerate(part)
            ]
            shard.update(qdrant.UpdateOperation.upsert_points(points))
        shard.flush()
        shard.close()

    def open(self) -> None:
        qdrant = import_module("qdrant_edge")

        self.shard = qdrant.EdgeShard.load(str(self.path))
        self.qdrant = qdrant

    def search(self, query: Query) -> Ids:
        query = self.qdrant.Query.Nearest(query.whitened.tolist(), using="v")
        params = self.qdrant.SearchParams(exact=True)
        found = self.shard.query(self.qdrant.QueryRequest(limit=K, query=query, params=params))
        return [int(point.id) for point in found]


ENGINES: dict[str, Callable[[Path], Engine]] = {
    "ours": Ours,
    "sqlite-vec int8": lambda folder: SqliteVec(folder, "int8"),
    "sqlite-vec float": lambda folder: SqliteVec(folder, "float"),
    "usearch, int8 array": Usearch,
    "LanceDB": Lance,
    "Qdrant Edge": Qdrant,
}


def fitted(raw: Floats) -> Whitening:
    """As a collection that grew to these vectors fits it, in floats."""
    return Whitening.fit(raw[: max(size for size in FIT_AT if size <= len(raw))])


def whiten(raw: Floats) -> Floats:
    """As a collection of these vectors does, in floats; unit length."""
    whitening = fitted(raw)
    parts = [whitening.apply(raw[first : first + 4096]) for first in range(0, len(raw), 4096)]
    whitened: Floats = np.concatenate(parts)
    whitened /= np.linalg.norm(whitened, axis=1, keepdims=True)
    return whitened


def nearest(raw: Floats, whitened: Floats, asked: Floats) -> tuple[Floats, NDArray[np.intp]]:
    """The queries [m, dims] whitened, and the K nearest of each by exact floats."""
    white = fitted(raw).apply(asked)
    white /= np.linalg.norm(white, axis=1, keepdims=True)
    order = np.argsort(-(white @ whitened.T), axis=1, kind="stable")
    return white, order[:, :K]


def build(name: str, work: Path, folder: Path) -> dict[str, Any]:
    """Store the vectors; seconds and bytes."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    raw, whitened = np.load(work / "raw.npy"), np.load(work / "whitened.npy")
    regions = np.load(work / "regions.npy").astype(np.float32)
    begun = time.perf_counter()
    ENGINES[name](folder).build(Data(raw, whitened, regions))
    build_s = time.perf_counter() - begun
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return {"build_s": build_s, "bytes_a_case": size / len(raw)}


def search(name: str, work: Path, folder: Path) -> dict[str, Any]:
    """Open what `build` stored, and search; times, memory that it took, and what was found."""
    asked = np.load(work / "queries.npz")
    raw, white, nearest = (asked[key] for key in ("raw", "whitened", "nearest"))
    engine: Engine = ENGINES[name](folder)
    _forget_peak()
    before = _status("VmRSS")
    begun = time.perf_counter()
    engine.open()
    opened = time.perf_counter()
    engine.search(Query(raw[0], white[0]))
    first = time.perf_counter()
    times, cpu, kept = [], [], 0
    for place in range(QUERIES):
        start, start_cpu = time.perf_counter(), time.process_time()
        found = engine.search(Query(raw[place], white[place]))
        times.append(time.perf_counter() - start)
        cpu.append(time.process_time() - start_cpu)
        kept += len(set(nearest[place].tolist()) & set(found))
    return {
        "open_ms": (opened - begun) * 1e3,
        "first_ms": (first - opened) * 1e3,
        "search_ms": median(times) * 1e3,
        "search_ms_least": min(times) * 1e3,
        "cpu_ms": median(cpu) * 1e3,  # of all threads: what a busy machine does not change
        "memory_mb": (_status("VmHWM") - before) / 1e6,
        "overlap": kept / (QUERIES * K),
    }


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew: proc(5)


def _status(name: str) -> int:
    """Bytes; Linux only, as the benchmark is."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(name)


def main() -> int:
    """Build or search, and print what it took."""
    step, name, work, folder = sys.argv[1:5]
    act = {"build": build, "search": search}[step]
    print(json.dumps(act(name, Path(work), Path(folder))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
