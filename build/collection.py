"""The command line of a large collection: the rows of a corpus become a file to search.

`python -m build.collection DIR… --out FILE`. A batch at a time, in constant memory; run again after
a kill, it goes on. No Ray. See docs/corpus.md.
"""

import argparse
import contextlib
import itertools
import json
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from build.console import exit_code, tell
from build.corpus_plan import PART
from build.corpus_rows import vectors
from build.corpus_source import file_system
from build.errors import BuildError
from sidecar.case import check_id, metadata_text
from sidecar.case_store import About
from sidecar.collection import Collection
from sidecar.errors import CollectionExists, RequestMalformed
from sidecar.library import metadata_rows
from sidecar.whitening import FIT_AT

BATCH = 128  # cases in a transaction
SHARD = 1_000_000  # cases in a file; a search takes time in proportion
COLUMNS = ("id", "metadata", "pooled_embedding", "regions", "error")
ORIGIN = ("model", "projection", "resolution")
SOURCES = "corpora"  # the note of which folders a collection was made of
SHARDS = "shard"  # the note of which shard it is of which cases; "" where it is whole
PROGRESS_S = 5.0

Tell = Callable[[str], None]


@dataclass(slots=True)
class Report:
    """What became of the rows."""

    added: int = 0
    there: int = 0  # before
    errors: Counter[str] = field(default_factory=Counter)
    strange: int = 0  # ids of the metadata that belong to no row
    files: list[Path] = field(default_factory=list)


def build(
    corpora: Sequence[str],
    out: Path,
    *,
    metadata: Path | None = None,
    merge: bool = False,
    shard: int = SHARD,
    tell: Tell = lambda _: None,
) -> Report:
    """Add all rows without an error to the collection `out`, or to its shards.

    `metadata`: CSV or JSON lines with a column id, in place of those of the rows. `merge` allows
    several corpora, and a collection that was made of others. Raises BuildError, SidecarError.
    """
    parts = [Part(corpus, *file) for corpus in corpora for file in _parts(corpus)]
    about = _origin(parts)
    counts = [part.good() for part in parts]
    total = sum(counts)
    files = shards(out, total, shard)
    report = Report(files=files)
    sample = Sample.of(counts)
    progress = _Progress(total, tell)
    size = -(-total // len(files))
    marks = [f"{number} of {len(files)} of {total}" for number in range(len(files))]
    marks = marks if len(files) > 1 else [""]
    with contextlib.ExitStack() as stack:
        details = (
            None if metadata is None else stack.enter_context(contextlib.closing(Details(metadata)))
        )
        opened = _open(files[0], about, corpora, merge, marks[0])
        first = stack.enter_context(contextlib.closing(opened))
        # The whitening is fitted on the first cases. Those of one folder are alike, so the sample
        # of all comes first.
        ahead = _rows(parts, counts, sample, sampled=True)
        _add(first, ahead, details, report, progress)
        rest = _rows(parts, counts, sample, sampled=False)
        _add(first, itertools.islice(rest, size - sample.count), details, report, progress)
        for file, mark in zip(files[1:], marks[1:], strict=True):
            with contextlib.closing(_open(file, about, corpora, merge, mark)) as collection:
                collection.adopt_statistics(first)
                _add(collection, itertools.islice(rest, size), details, report, progress)
        if details is not None:
            report.strange = details.unused()
    for part in parts:
        report.errors.update(part.errors())
    return report


def shards(out: Path, total: int, size: int) -> list[Path]:
    """The files for `total` cases, of at most `size` each: `out` itself, or its numbered ones."""
    count = max(1, -(-total // size))
    if count == 1:
        return [out]
    return [out.with_name(f"{out.stem}-{number:03}{out.suffix}") for number in range(count)]


@dataclass(frozen=True, slots=True)
class Part:
    """A file of rows."""

    corpus: str
    files: pafs.FileSystem
    path: str

    def read(self, columns: Sequence[str]) -> pa.Table:
        try:
            return pq.read_table(self.path, columns=list(columns), filesystem=self.files)
        except (pa.ArrowInvalid, KeyError) as error:
            raise BuildError(f"{self.path} does not hold rows of a corpus: {error}") from error

    def good(self) -> int:
        """How many rows have no error."""
        return int(self.read(["error"])["error"].null_count)

    def errors(self) -> Counter[str]:
        return Counter(code for code in self.read(["error"])["error"].to_pylist() if code)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Of the rows without an error."""
        with pq.ParquetFile(self.path, filesystem=self.files) as file:
            for batch in file.iter_batches(BATCH, columns=list(COLUMNS)):
                yield batch.filter(batch.column("error").is_null())


def _parts(corpus: str) -> list[tuple[pafs.FileSystem, str]]:
    files, folder = file_system(corpus)
    inside = files.get_file_info(pafs.FileSelector(folder, allow_not_found=True))
    names = sorted(info.path for info in inside if PART.fullmatch(info.base_name))
    if not names:
        raise BuildError(
            f"expected a folder that `python -m build.corpus` wrote; {corpus} has no rows."
        )
    return [(files, name) for name in names]


def _origin(parts: Sequence[Part]) -> About:
    """What the rows belong to: all the same. Raises BuildError."""
    found: dict[About, str] = {}
    corpora: set[str] = set()
    for part in parts:
        if part.corpus in corpora:  # _corpus.json holds all of its parts to one origin
            continue
        table = part.read((*ORIGIN, "pooled_embedding")).slice(0, 1)
        row = table.to_pylist()[0]
        height, width = row["resolution"]
        dims = table.schema.field("pooled_embedding").type.list_size
        about = About(row["model"], row["projection"], (height, width), dims)
        found.setdefault(about, part.corpus)
        corpora.add(part.corpus)
    if len(found) > 1:
        raise BuildError(
            f"{' and '.join(found.values())} are of different models, projections or resolutions. "
            "Their vectors do not compare: make a collection of each."
        )
    return next(iter(found))


def _open(file: Path, about: About, corpora: Sequence[str], merge: bool, mark: str) -> Collection:
    """Raises the errors of Collection.open, and BuildError."""
    collection = Collection.open(file.absolute(), about, create=True)
    try:
        _check_sources(collection, [_name(corpus) for corpus in corpora], merge, mark)
    except BaseException:
        collection.close()
        raise
    return collection


def _check_sources(collection: Collection, names: list[str], merge: bool, mark: str) -> None:
    store = collection.store
    note, marked = store.note(SOURCES), store.note(SHARDS)
    known = [] if note is None else json.loads(note)
    if not merge and (len(names) > 1 or (collection.count and known != names)):
        raise BuildError(
            f"{store.path.name} would hold the cases of several sources. If that is meant, add "
            "--merge; else choose another --out."
        )
    if collection.count and mark != (marked or ""):
        raise BuildError(
            f"{store.path.name} is there with another number of cases in all or in a file. Which "
            "case lies in which shard has changed: choose another --out."
        )
    joined = json.dumps([*known, *(name for name in names if name not in known)])
    if (joined, mark) != (note, marked or ""):
        with store.writing():
            store.put_note(SOURCES, joined)
            store.put_note(SHARDS, mark)


def _name(corpus: str) -> str:
    return corpus if "://" in corpus else str(Path(corpus).absolute())


Row = tuple[str, str, Any, bytes]  # id, metadata, pooled, regions


@dataclass(frozen=True, slots=True)
class Sample:
    """Rows spread evenly over all that are good, as many as a whitening is fitted on."""

    total: int
    count: int

    @classmethod
    def of(cls, counts: Sequence[int]) -> Self:
        total = sum(counts)
        return cls(total, min(total, FIT_AT[-1]))

    def has(self, number: int) -> bool:
        """Whether the row with this number is one of them."""
        return number * self.count // self.total != (number + 1) * self.count // self.total


def _rows(
    parts: Sequence[Part], counts: Sequence[int], sample: Sample, sampled: bool
) -> Iterator[Row]:
    number = 0
    for part, count in zip(parts, counts, strict=True):
        chosen = [sample.has(number + place) is sampled for place in range(count)]
        number += count
        if any(chosen):
            yield from _chosen(part, chosen)


def _chosen(part: Part, chosen: Sequence[bool]) -> Iterator[Row]:
    first = 0
    for batch in part.batches():
        rows = batch.filter(pa.array(chosen[first : first + len(batch)], pa.bool_()))
        first += len(batch)
        dims = rows.schema.field("pooled_embedding").type.list_size
        pooled = rows.column("pooled_embedding").flatten().to_numpy().reshape(-1, dims)
        texts = [rows.column(name).to_pylist() for name in ("id", "metadata", "regions")]
        for id, metadata, regions, vector in zip(*texts, pooled, strict=True):
            yield id, metadata, vector, regions


def _add(
    collection: Collection,
    rows: Iterator[Row],
    details: "Details | None",
    report: Report,
    progress: "_Progress",
) -> None:
    while batch := list(itertools.islice(rows, BATCH)):
        with collection.store.writing():
            for id, text, pooled, regions in batch:
                metadata = json.loads(text) if details is None else details.of(id)
                try:
                    found = vectors(np.asarray(pooled, np.float32), regions)
                    new = collection.add(id, found, metadata)
                except CollectionExists as error:
                    raise BuildError(
                        f"the id {id!r} belongs to another case of {collection.store.path.name}, "
                        "or to this one with other metadata. Ids must be different in all sources."
                    ) from error
                report.added += new
                report.there += not new
        progress.step(len(batch))


class Details:
    """Metadata by id from a file, on disk: there may be millions. Raises BuildError, OSError."""

    def __init__(self, path: Path) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="vision-sidecar-")
        self._db = sqlite3.connect(Path(self._folder.name) / "details", isolation_level=None)
        self._db.execute("pragma synchronous=off")
        self._db.execute("pragma journal_mode=off")
        self._db.execute("create table details(id text primary key, text, used) without rowid")
        try:
            self._read(path)
        except BaseException:
            self.close()
            raise

    def _read(self, path: Path) -> None:
        self._db.execute("begin")
        try:
            for number, row in metadata_rows(path):
                try:
                    values = check_id(row.pop("id", None)), metadata_text(row)
                    self._db.execute("insert into details values (?, ?, 0)", values)
                except RequestMalformed as error:
                    raise BuildError(f"the metadata's line {number}: {error}") from error
                except sqlite3.IntegrityError as error:
                    raise BuildError(
                        f"the metadata have an id twice; again in line {number}."
                    ) from error
        except ValueError as error:
            raise BuildError(str(error)) from error
        self._db.execute("commit")

    def of(self, id: str) -> Mapping[str, Any]:
        """An empty object where the file says nothing."""
        row = self._db.execute("select text from details where id = ?", (id,)).fetchone()
        if row is None:
            return {}
        self._db.execute("update details set used = 1 where id = ?", (id,))
        found: Mapping[str, Any] = json.loads(row[0])
        return found

    def unused(self) -> int:
        """How many ids nobody asked for."""
        (count,) = self._db.execute("select count(*) from details where used = 0").fetchone()
        return int(count)

    def close(self) -> None:
        self._db.close()
        self._folder.cleanup()


class _Progress:
    def __init__(self, total: int, tell: Tell) -> None:
        self._total, self._tell, self._done = total, tell, 0
        self._told = time.monotonic()

    def step(self, count: int) -> None:
        self._done += count
        if time.monotonic() - self._told >= PROGRESS_S:
            self._told = time.monotonic()
            self._tell(f"{self._done} of {self._total}")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0, or 1 after one clear sentence."""
    parser = argparse.ArgumentParser(prog="python -m build.collection", description=__doc__)
    parser.add_argument("corpora", nargs="+", metavar="DIR", help="what build.corpus wrote")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    parser.add_argument("--metadata", type=Path, metavar="FILE", help="CSV or JSON lines, with id")
    parser.add_argument("--merge", action="store_true", help="several sources in one collection")
    parser.add_argument(
        "--shard", type=int, default=SHARD, metavar="N", help=f"cases a file; default: {SHARD}"
    )
    options = parser.parse_args(argv)
    if options.shard < FIT_AT[-1]:
        parser.error(f"--shard must be at least {FIT_AT[-1]}")

    def work() -> None:
        report = build(
            options.corpora,
            options.out,
            metadata=options.metadata,
            merge=options.merge,
            shard=options.shard,
            tell=tell,
        )
        tell(f"{report.added} added, {report.there} there already, {report.errors.total()} bad")
        if report.strange:
            tell(f"{report.strange} ids of the metadata belong to no case")
        for code, count in sorted(report.errors.items()):
            tell(f"bad  {count} {code}")
        for file in report.files:
            tell(f"{file}: {file.stat().st_size / 1e6:.1f} MB")

    return exit_code("collection", work, resumes=True)


if __name__ == "__main__":
    sys.exit(main())
