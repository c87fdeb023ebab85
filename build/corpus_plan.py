"""The folder of a corpus: what the job is, the list of its blocks, and which of them are done.

    _corpus.json          what every block is encoded with
    _list/000.parquet     the items; a file for each time that new ones were found
    _begun/               a note for each block that was begun and is not done
    part-000-0000000.parquet    the rows of a block: there whole, or not at all

A *block* is a number of items that one encoder takes at a time. Its file is its own checkpoint: a
job that was killed goes on with the blocks that have none. Parquet's readers pass over names that
begin with an underscore. No encoder, no Ray.
"""

import contextlib
import itertools
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from build.corpus_source import Item, file_system
from build.errors import BuildError

NAME = "_corpus.json"
LISTS = "_list"
NOTES = "_begun"
FORMAT = 1
GROUP = 16_384  # items in a row group of a list
PART = re.compile(r"part-(\d{3})-(\d{7})\.parquet")
SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("metadata", pa.string(), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True)
class About:
    """What all rows of a corpus share: vectors of another origin do not compare."""

    source: str
    model: str  # the digest of the model directory
    recipe: str
    projection: str
    resolution: tuple[int, int]  # height, width
    dims: int  # of a vector
    encoder: str  # the sidecar's version
    tokens: bool  # whether the projected embeddings are kept
    block: int  # images


@dataclass(frozen=True, slots=True, order=True)
class Block:
    list: int
    number: int

    @property
    def name(self) -> str:
        return f"part-{self.list:03}-{self.number:07}.parquet"


@dataclass(slots=True)
class Note:
    """Of a block that is not done: what ends a process could end every one that takes the block."""

    begun: int = 0  # how often
    at: int = -1  # the item that was being encoded when the note was written
    ended: dict[str, int] = field(default_factory=dict)  # processes that ended, by item


class Folder:
    """Of a corpus, on a path or a URL that every machine of the job can open."""

    def __init__(self, place: str) -> None:
        self.place = place
        self.files, self.path = file_system(place)
        self._group: tuple[int, int, pa.Table] | None = None

    def about(self) -> About | None:
        """Raises BuildError where the folder is of another format."""
        try:
            with self.files.open_input_stream(f"{self.path}/{NAME}") as stream:
                values = json.loads(stream.read())
            height, width = values.pop("resolution")
            format, about = values.pop("format"), About(resolution=(height, width), **values)
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError):
            format = None
        if format != FORMAT:
            raise BuildError(
                f"{self.place}/{NAME} is not of a corpus of this version. Choose another --out."
            )
        return about

    def begin(self, about: About) -> None:
        """Say what the corpus is; where that was said, it must be the same. Raises BuildError."""
        there = self.about()
        if there is None:
            self.files.create_dir(f"{self.path}/{LISTS}", recursive=True)
            self.files.create_dir(f"{self.path}/{NOTES}", recursive=True)
            text = json.dumps({"format": FORMAT, **asdict(about)}, indent=1)
            self.write(NAME, text.encode())
        elif there != about:
            mine, theirs = asdict(about), asdict(there)
            name = next(name for name in mine if mine[name] != theirs[name])
            raise BuildError(
                f"{self.place} is a corpus with {name} {theirs[name]}, and this job has "
                f"{mine[name]}. Rows of the two do not go together: choose another --out."
            )

    def write(self, name: str, data: bytes) -> None:
        """A file, all or nothing, and on disk at the end. Raises OSError."""
        path = f"{self.path}/{name}"
        if not isinstance(self.files, pafs.LocalFileSystem):
            with self.files.open_output_stream(path) as stream:  # appears when it is closed
                stream.write(data)
            return
        handle, partial = tempfile.mkstemp(prefix=".partial-", dir=Path(path).parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            Path(partial).chmod(0o644)
            Path(partial).replace(path)
        except BaseException:
            Path(partial).unlink(missing_ok=True)
            raise

    def note(self, block: Block) -> Note:
        """What those left who began the block before."""
        try:
            with self.files.open_input_stream(f"{self.path}/{NOTES}/{block.name}") as stream:
                return Note(**json.loads(stream.read()))
        except FileNotFoundError:
            return Note()

    def set_note(self, block: Block, note: Note) -> None:
        self.write(f"{NOTES}/{block.name}", json.dumps(asdict(note)).encode())

    def drop_note(self, block: Block) -> None:
        """Once the block is done."""
        with contextlib.suppress(FileNotFoundError):  # two may have encoded it
            self.files.delete_file(f"{self.path}/{NOTES}/{block.name}")

    # The list

    def add(self, items: Iterable[Item]) -> int:
        """List the items that are not in a list yet. How many those were."""
        known = set(self._ids())
        number = len(self._lists())
        new = (item for item in items if item.id not in known)
        count = 0
        sink = pa.BufferOutputStream()
        with pq.ParquetWriter(sink, SCHEMA) as writer:
            while group := list(itertools.islice(new, GROUP)):
                columns = [[getattr(item, name) for item in group] for name in SCHEMA.names]
                writer.write_table(pa.table(columns, schema=SCHEMA))
                count += len(group)
        if count:
            self.write(f"{LISTS}/{number:03}.parquet", sink.getvalue())
        return count

    def blocks(self, size: int) -> list[tuple[Block, int]]:
        """All blocks, with how many items each has."""
        found = []
        for number, path in enumerate(self._lists()):
            rows = pq.read_metadata(path, filesystem=self.files).num_rows
            for start in range(0, rows, size):
                found.append((Block(number, start // size), min(size, rows - start)))
        return found

    def done(self) -> set[Block]:
        """The blocks whose rows are there."""
        inside = self.files.get_file_info(pafs.FileSelector(self.path))
        matches = (PART.fullmatch(info.base_name) for info in inside)
        return {Block(int(match[1]), int(match[2])) for match in matches if match}

    def rows_of(self, block: Block) -> tuple[int, int] | None:
        """How many rows of a block are there, and how many of those are errors."""
        try:
            path = f"{self.path}/{block.name}"
            errors = pq.read_table(path, columns=["error"], filesystem=self.files)["error"]
        except FileNotFoundError:
            return None
        return len(errors), len(errors) - errors.null_count

    def items(self, block: Block, size: int) -> list[Item]:
        """Of one block."""
        start = block.number * size
        found: list[Item] = []
        while len(found) < size:
            group, place = divmod(start + len(found), GROUP)
            table = self._read(block.list, group)
            if table is None or place >= table.num_rows:
                break
            rows = table.slice(place, size - len(found)).to_pylist()
            found += [Item(**row) for row in rows]
        return found

    def _read(self, number: int, group: int) -> pa.Table | None:
        if self._group is None or self._group[:2] != (number, group):
            path = f"{self.path}/{LISTS}/{number:03}.parquet"
            with pq.ParquetFile(path, filesystem=self.files) as file:
                if group >= file.num_row_groups:
                    return None
                self._group = number, group, file.read_row_group(group)
        return self._group[2]

    def _ids(self) -> Iterator[str]:
        for path in self._lists():
            with pq.ParquetFile(path, filesystem=self.files) as file:
                for batch in file.iter_batches(GROUP, columns=["id"]):
                    yield from batch.column(0).to_pylist()

    def _lists(self) -> Sequence[str]:
        selector = pafs.FileSelector(f"{self.path}/{LISTS}", allow_not_found=True)
        inside = self.files.get_file_info(selector)
        return sorted(info.path for info in inside if info.base_name.endswith(".parquet"))
