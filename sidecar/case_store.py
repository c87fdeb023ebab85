"""The file of a collection: SQLite, its schema, locks and checksums. Bytes, not what they mean.

A case has a *slot*, a number. Vectors lie in BLOBs of 256 slots, regions in BLOBs of 16, each
record behind its CRC-32, because SQLite has no checksums of its own. Ids and metadata lie in BLOBs
too; the table of cases knows only a keyed hash of an id. For what has to be gone after a removal
must be overwritten where it lies, and rows are not: SQLite copies them when it balances its pages,
and leaves the old bytes behind, with `secure_delete` too. Overflow pages are never copied. So every
BLOB begins with PADDING bytes of nothing, which is the part that may lie in a row.

One connection with `locking_mode=EXCLUSIVE`: a second process is told so at once, and SQLite's
WAL-reset bug (https://sqlite.org/wal.html#walresetbug), which needs two connections, cannot occur.
The journal becomes a WAL at the first write and goes when the file is closed, so that a closed
collection is one file.
"""

import contextlib
import io
import json
import os
import secrets
import sqlite3
import stat
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from sidecar.errors import (
    CollectionBusy,
    CollectionDiskFull,
    CollectionNotFound,
    CollectionReadOnly,
    CollectionUnreadable,
    SidecarError,
)
from sidecar.quantised import Codes

APPLICATION_ID = 0x56534361  # "VSCa"
SCHEMA_VERSION = 1
BLOCK = 256  # vectors in a BLOB
REGION_BLOCK = 16  # records of regions in a BLOB
TEXT_BLOCK = 128 * 1024  # bytes of ids and metadata in a BLOB
PADDING = 4096

SCHEMA = """
create table about(name text primary key, value text not null) strict, without rowid;
create table cases(
  slot integer primary key, hash blob not null unique,
  block integer not null, start integer not null, length integer not null
) strict;
create table texts(block integer primary key, records blob not null) strict;
create table vectors(block integer primary key, records blob not null) strict;
create table regions(block integer primary key, records blob not null) strict;
create table early_regions(slot integer primary key, record blob not null) strict;
create table arrays(name text primary key, npy blob not null, crc integer not null) strict;
"""

SETTINGS = (
    "synchronous=full",
    "fullfsync=on",  # on a Mac, fsync leaves what it wrote in the drive's cache
    "checkpoint_fullfsync=on",
    "secure_delete=on",
    "temp_store=memory",  # else pages that hold cases may go to the system's folder for such files
    "trusted_schema=off",
    "cell_size_check=on",
)

PRECISIONS = {"int8": "<i1", "int16": "<i2"}

_TABLES = {"about", "cases", "texts", "vectors", "regions", "early_regions", "arrays"}
_ABOUT = ("model", "projection", "resolution", "dims", "salt", "precision")
_CRC = struct.Struct("<I")
_TEXT = struct.Struct("<H")  # bytes of the id, which the metadata follow
_DAMAGED = "The collection is left as it is. Restore the file from a copy."
_LEFT_OPEN = (
    "a program that wrote to this collection was ended before it could close it, and the folder "
    "cannot be written, so the collection cannot be put in order. Copy the file and the files "
    "beside it, whose names begin with its name, to a folder that can be written."
)


@dataclass(frozen=True, slots=True)
class About:
    """What a collection belongs to: a vector of another origin does not compare."""

    model: str  # the digest of the model directory
    projection: str
    resolution: tuple[int, int]  # height, width
    dims: int  # of a vector
    precision: str = "int8"  # of its numbers, where a collection is made; or int16


@dataclass(frozen=True, slots=True)
class Case:
    slot: int
    id: str
    metadata: str  # a JSON object


class CaseStore:
    """An open file. For one thread at a time."""

    def __init__(self, connection: sqlite3.Connection, path: Path, read_only: bool) -> None:
        self.path = path
        self.read_only = read_only
        self.damage: CollectionUnreadable | None = None  # found in it: it is not written again
        self._db = connection
        self._logged = False  # whether the journal is a WAL
        self._text_end: tuple[int | None, int] | None = None  # block and offset; None: not known
        self._verified: set[int] = set()  # first slots of the blocks whose checksums are right
        with _told(self):
            _check_schema(connection)
            about = dict(self._db.execute("select name, value from about"))
            self.about = _about(about)
            self._salt = bytes.fromhex(about["salt"])
            self._slots = self._read_slots()
        self.record = np.dtype(
            [
                ("crc", "<u4"),
                ("scale", "<f4"),
                ("norm", "<f4"),
                ("codes", PRECISIONS[self.about.precision], self.about.dims),
            ]
        )

    @classmethod
    def open(cls, path: Path, read_only: bool = False, create: About | None = None) -> Self:
        """Raises CollectionNotFound, CollectionBusy, CollectionReadOnly, CollectionUnreadable.

        `create` says what a collection that does not exist yet shall belong to.
        """
        path = path.absolute()
        try:
            size = _size(path)
        except FileNotFoundError:
            size = 0
        if size == 0 and create is None:
            raise CollectionNotFound("there is no collection under that name. Add a case first.")
        folder = path.parent
        if size == 0 and not folder.is_dir():
            raise CollectionNotFound("the folder for the collection does not exist. Make it first.")
        writable = os.access(folder, os.W_OK) and (size == 0 or os.access(path, os.W_OK))
        if size == 0 and (read_only or not writable):
            raise CollectionReadOnly(
                "the collection cannot be made: its folder cannot be written, or only reading is "
                "allowed."
            )
        left_open = size > 0 and _check_file(path, size)
        if left_open and not writable:
            raise CollectionReadOnly(_LEFT_OPEN)
        if left_open and read_only:
            cls._connect(path, read_only=False, create=None).close()  # puts it in order
        return cls._connect(path, read_only or not writable, create if size == 0 else None)

    @classmethod
    def _connect(cls, path: Path, read_only: bool, create: About | None) -> Self:
        mode = "ro" if read_only else "rwc" if create else "rw"
        with _told(None):
            db = sqlite3.connect(
                f"{_uri(path)}?mode={mode}",
                uri=True,
                timeout=0,
                isolation_level=None,
                check_same_thread=False,
            )
        try:
            with _told(None):
                if not read_only:
                    # The first of all: whatever looks into the file before it makes a -shm file.
                    db.execute("pragma locking_mode=exclusive")
                for setting in SETTINGS:
                    db.execute(f"pragma {setting}")
                if read_only:
                    db.execute("begin")  # and a read: others may read too, and none may write
                    db.execute("select count(*) from about").fetchone()
                elif create is not None:
                    _create(db, create)
                else:
                    db.execute("begin exclusive")
                    db.execute("commit")
            return cls(db, path, read_only)
        except BaseException:
            db.close()
            raise

    def close(self) -> None:
        """Put everything into the one file, where that can be done."""
        with contextlib.suppress(sqlite3.Error):  # a full disk: the next open does it
            if not self.read_only and self.damage is None:
                mode = self._db.execute("pragma journal_mode").fetchone()[0]
                if mode == "wal":
                    self._db.execute("pragma journal_mode=delete")
                # A kill in the change of modes can leave a journal whose header is zeros: SQLite
                # neither needs nor removes it. While we hold the lock nobody else's can be there.
                with contextlib.suppress(OSError):
                    Path(f"{self.path}-journal").unlink(missing_ok=True)
        self._db.close()

    # Reading

    @property
    def count(self) -> int:
        return int(np.count_nonzero(self._slots))

    @property
    def slots(self) -> NDArray[np.intp]:
        """The slots of all cases, in their order."""
        return np.flatnonzero(self._slots)

    @property
    def size(self) -> int:
        """Bytes of the file and of what lies beside it now."""
        names = (self.path, *(Path(f"{self.path}{end}") for end in ("-wal", "-journal")))
        return sum(name.stat().st_size for name in names if name.exists())

    def find(self, id: str) -> Case | None:
        with _told(self):
            row = self._db.execute(
                "select slot, block, start, length from cases where hash = ?", (self._hash(id),)
            ).fetchone()
        return None if row is None else self._read_case(*row)

    def case(self, slot: int) -> Case:
        with _told(self):
            row = self._db.execute(
                "select slot, block, start, length from cases where slot = ?", (slot,)
            ).fetchone()
        if row is None:
            raise self._damaged("a case has lost its id")
        return self._read_case(*row)

    def cases(self, fragments: Sequence[str] = ()) -> Iterator[Case]:
        """All cases whose metadata, as text, hold every one of `fragments`."""
        wanted = [fragment.encode() for fragment in fragments]
        texts, held = memoryview(b""), -1
        with _told(self):
            rows = self._db.execute(
                "select slot, block, start, length from cases order by block, start"
            )
            for slot, block, start, length in rows:
                if block != held:
                    texts, held = memoryview(self._blob("texts", block)), block
                data = bytes(texts[start : start + length])
                if all(fragment in data for fragment in wanted):
                    yield self._parsed(slot, data)

    def blocks(self) -> Iterator[tuple[int, NDArray[Any]]]:
        """Pairs of a first slot and its block's records, [256]; an empty one has scale 0. They are
        checked when they are first read: from then on nobody else can write to the file.

        Raises CollectionUnreadable where a record is not what was written.
        """
        for first in range(0, len(self._slots), BLOCK):
            used = self._slots[first : first + BLOCK]
            if not used.any():
                continue
            with _told(self):
                data = self._blob("vectors", first // BLOCK)
            yield first, self._records(first, data, used)

    def vector(self, slot: int) -> Any:
        """One record, checked."""
        with _told(self):
            data = self._read("vectors", slot, BLOCK, self.record.itemsize)
        self._check(slot, data)
        records: NDArray[Any] = np.frombuffer(data, self.record)
        return records[0]

    def regions(self, slot: int, size: int) -> bytes:
        """The case's record of `size` bytes, checked."""
        with _told(self):
            data = self._read("regions", slot, REGION_BLOCK, size + _CRC.size)
        self._check(slot, data)
        return data[_CRC.size :]

    def early_regions(self) -> Iterator[tuple[int, bytes]]:
        """Slots and records of regions from before there was a basis, checked."""
        with _told(self):
            for slot, padded in self._db.execute("select slot, record from early_regions"):
                data = padded[PADDING:]
                self._check(slot, data)
                yield slot, data[_CRC.size :]

    def array(self, name: str) -> NDArray[Any] | None:
        with _told(self):
            row = self._db.execute("select npy, crc from arrays where name = ?", (name,)).fetchone()
        if row is None:
            return None
        if zlib.crc32(row[0]) != row[1]:
            raise self._damaged(f"the array {name} has changed")
        array: NDArray[Any] = np.load(io.BytesIO(row[0]), allow_pickle=False)
        return array

    def note(self, name: str) -> str | None:
        with _told(self):
            row = self._db.execute("select value from about where name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

    # Writing

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """A transaction: all of what is written in it is on disk at its end, or nothing is."""
        if self.damage is not None:
            raise self.damage
        if self.read_only:
            raise CollectionReadOnly(
                "the collection is open for reading only, or its folder cannot be written."
            )
        if self._db.in_transaction:  # within another
            yield
            return
        slots = self._slots.copy()
        with _told(self):
            if not self._logged:
                self._db.execute("pragma journal_mode=wal")
                self._logged = True
            self._db.execute("begin immediate")
            try:
                yield
                self._db.execute("commit")
            except BaseException:
                self._slots, self._text_end = slots, None
                if self._db.in_transaction:  # SQLite may have rolled back already, on a full disk
                    self._db.execute("rollback")
                raise

    def free_slot(self) -> int:
        free = np.flatnonzero(~self._slots)
        return int(free[0]) if len(free) else len(self._slots)

    def put(self, case: Case, scale: float, norm: float, codes: Codes) -> None:
        """Write a case and its vector. Within `writing`."""
        self._erase_text(case.slot)
        block, start, length = self._put_text(case)
        self._db.execute(
            "insert or replace into cases(slot, hash, block, start, length) values (?, ?, ?, ?, ?)",
            (case.slot, self._hash(case.id), block, start, length),
        )
        if case.slot >= len(self._slots):
            grown = np.zeros((case.slot // BLOCK + 1) * BLOCK, bool)
            grown[: len(self._slots)] = self._slots
            self._slots = grown
        self._slots[case.slot] = True
        self.put_vector(case.slot, scale, norm, codes)

    def put_vector(self, slot: int, scale: float, norm: float, codes: Codes) -> None:
        record = np.zeros(1, self.record)
        record["scale"], record["norm"], record["codes"] = scale, norm, codes
        self._write("vectors", slot, BLOCK, _sealed(slot, record.tobytes()[_CRC.size :]))

    def put_regions(self, slot: int, record: bytes) -> None:
        self._write("regions", slot, REGION_BLOCK, _sealed(slot, record))

    def put_early_regions(self, slot: int, record: bytes) -> None:
        self._db.execute(
            "insert or replace into early_regions(slot, record) values (?, ?)",
            (slot, bytes(PADDING) + _sealed(slot, record)),
        )

    def drop_early_regions(self) -> None:
        self._db.execute("delete from early_regions")

    def put_array(self, name: str, array: NDArray[Any]) -> None:
        file = io.BytesIO()
        np.save(file, array, allow_pickle=False)
        data = file.getvalue()
        self._db.execute(
            "insert or replace into arrays(name, npy, crc) values (?, ?, ?)",
            (name, data, zlib.crc32(data)),
        )

    def put_note(self, name: str, value: str) -> None:
        self._db.execute("insert or replace into about(name, value) values (?, ?)", (name, value))

    def delete(self, slot: int, regions_size: int) -> None:
        """Overwrite a case's bytes. Within `writing`; `scrub` after it."""
        self._erase_text(slot)
        self._db.execute("delete from cases where slot = ?", (slot,))
        self._db.execute("delete from early_regions where slot = ?", (slot,))
        self._write("vectors", slot, BLOCK, bytes(self.record.itemsize))
        row = self._db.execute(
            "select 1 from regions where block = ?", (slot // REGION_BLOCK,)
        ).fetchone()
        if row is not None:
            self._write("regions", slot, REGION_BLOCK, bytes(regions_size + _CRC.size))
        self._slots[slot] = False

    def scrub(self) -> None:
        """Take what was deleted out of the WAL too."""
        with _told(self):
            self._db.execute("pragma wal_checkpoint(truncate)").fetchone()

    def _put_text(self, case: Case) -> tuple[int, int, int]:
        id = case.id.encode()
        record = _sealed(case.slot, _TEXT.pack(len(id)) + id + case.metadata.encode())
        if self._text_end is None:  # a walk over all cases: once, and after a rollback
            self._text_end = self._db.execute(
                "select block, max(start + length) from cases"
                " where block = (select max(block) from cases)"
            ).fetchone()
        block, end = self._text_end
        if block is None:
            block, end = 0, PADDING
        elif end + len(record) > PADDING + TEXT_BLOCK:
            block, end = block + 1, PADDING
        self._make("texts", block, TEXT_BLOCK)
        self._overwrite("texts", block, end, record)
        self._text_end = block, end + len(record)
        return block, end, len(record)

    def _erase_text(self, slot: int) -> None:
        row = self._db.execute(
            "select block, start, length from cases where slot = ?", (slot,)
        ).fetchone()
        if row is not None:
            self._overwrite("texts", row[0], row[1], bytes(row[2]))

    def _write(self, table: str, slot: int, per_block: int, record: bytes) -> None:
        block, place = divmod(slot, per_block)
        self._make(table, block, per_block * len(record))
        self._overwrite(table, block, PADDING + place * len(record), record)

    def _make(self, table: str, block: int, size: int) -> None:
        self._db.execute(
            f"insert or ignore into {table}(block, records) values (?, zeroblob(?))",
            (block, PADDING + size),
        )

    def _overwrite(self, table: str, block: int, start: int, data: bytes) -> None:
        with self._db.blobopen(table, "records", block) as blob:
            blob.seek(start)
            blob.write(data)

    def _blob(self, table: str, block: int) -> bytes:
        row = self._db.execute(f"select records from {table} where block = ?", (block,)).fetchone()
        if row is None:
            raise self._damaged(f"block {block} of the {table} is missing")
        data: bytes = row[0]
        return data

    def _read(self, table: str, slot: int, per_block: int, size: int) -> bytes:
        block, place = divmod(slot, per_block)
        try:
            blob = self._db.blobopen(table, "records", block, readonly=True)
        except sqlite3.OperationalError as error:
            raise self._damaged(f"block {block} of the {table} is missing") from error
        with blob:
            blob.seek(PADDING + place * size)
            return bytes(blob.read(size))

    def _read_case(self, slot: int, block: int, start: int, length: int) -> Case:
        with _told(self), self._db.blobopen("texts", "records", block, readonly=True) as blob:
            if not PADDING <= start <= start + length <= len(blob):
                raise self._damaged(f"the id of slot {slot} is missing")
            blob.seek(start)
            data = blob.read(length)
        return self._parsed(slot, data)

    def _hash(self, id: str) -> bytes:
        return blake2b(id.encode(), digest_size=16, key=self._salt).digest()

    # Checking

    def _read_slots(self) -> NDArray[np.bool_]:
        rows = self._db.execute("select slot from cases")
        slots = np.fromiter((slot for (slot,) in rows), np.int64)
        if len(slots) and (slots.min() < 0 or slots.max() > 2**31):
            raise self._damaged("a case has a slot beyond reason")
        size = (int(slots.max()) // BLOCK + 1) * BLOCK if len(slots) else 0
        used = np.zeros(size, bool)
        used[slots] = True
        return used

    def _parsed(self, slot: int, data: bytes) -> Case:
        self._check(slot, data)
        start = _CRC.size + _TEXT.size
        end = start + _TEXT.unpack_from(data, _CRC.size)[0]
        return Case(slot, data[start:end].decode(), data[end:].decode())

    def _records(self, first: int, data: bytes, used: NDArray[np.bool_]) -> NDArray[Any]:
        if len(data) != PADDING + BLOCK * self.record.itemsize:
            raise self._damaged(f"vectors from slot {first} on are missing")
        records: NDArray[Any] = np.frombuffer(data, self.record, offset=PADDING)
        if not np.array_equal(records["scale"] != 0, used):
            raise self._damaged(f"vectors from slot {first} on are missing")
        if first in self._verified:
            return records
        size, crcs = self.record.itemsize, records["crc"].tolist()
        view = memoryview(data)
        crc32, skip = zlib.crc32, _CRC.size
        for place in np.flatnonzero(used).tolist():
            start = PADDING + place * size
            seed = crc32((first + place).to_bytes(8, "little"))
            if crc32(view[start + skip : start + size], seed) != crcs[place]:
                raise self._damaged(f"the vector in slot {first + place} has changed")
        self._verified.add(first)
        return records

    def _check(self, slot: int, data: bytes) -> None:
        if data != _sealed(slot, data[_CRC.size :]):
            raise self._damaged(f"a record of slot {slot} has changed")

    def _damaged(self, what: str) -> CollectionUnreadable:
        self.damage = CollectionUnreadable(f"the collection is damaged: {what}. {_DAMAGED}")
        return self.damage


def _create(db: sqlite3.Connection, about: About) -> None:
    db.execute("begin exclusive")
    if db.execute("select count(*) from sqlite_schema").fetchone()[0] == 0:
        db.execute(f"pragma application_id={APPLICATION_ID}")
        db.execute(f"pragma user_version={SCHEMA_VERSION}")
        for statement in SCHEMA.split(";"):
            db.execute(statement)
        values: Mapping[str, str] = {
            "model": about.model,
            "projection": about.projection,
            "resolution": json.dumps(about.resolution),
            "dims": str(about.dims),
            "salt": secrets.token_hex(16),
            "precision": about.precision,
        }
        db.executemany("insert into about values (?, ?)", values.items())
        db.execute("insert into about values ('crc', ?)", (str(_about_crc(values)),))
    db.execute("commit")


def _check_schema(db: sqlite3.Connection) -> None:
    """Nothing but our tables: a trigger or a view would be somebody else's program."""
    found = set(db.execute("select type, name from sqlite_schema where name not like 'sqlite_%'"))
    if found != {("table", name) for name in _TABLES}:
        raise CollectionUnreadable("the file is not a collection: its tables are others.")


def _about(values: Mapping[str, str]) -> About:
    kept = {name: values[name] for name in _ABOUT if name in values}  # the first files have 8 bits
    if values.get("crc") != str(_about_crc(kept)):
        raise CollectionUnreadable(
            f"the collection is damaged: what it belongs to has changed. {_DAMAGED}"
        )
    height, width = json.loads(kept["resolution"])
    precision = kept.get("precision", "int8")
    if precision not in PRECISIONS:
        raise CollectionUnreadable(
            f"the collection's vectors are {precision}, which this sidecar does not read. Use the "
            "version of the app that wrote it, or a newer one."
        )
    return About(kept["model"], kept["projection"], (height, width), int(kept["dims"]), precision)


def _about_crc(values: Mapping[str, str]) -> int:
    return zlib.crc32(json.dumps(dict(sorted(values.items()))).encode())


def _sealed(slot: int, data: bytes) -> bytes:
    """With the CRC-32 of the slot's number and the data in front."""
    return _CRC.pack(zlib.crc32(data, zlib.crc32(slot.to_bytes(8, "little")))) + data


def _size(path: Path) -> int:
    try:
        found = path.stat()
    except NotADirectoryError as error:
        raise FileNotFoundError from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        if isinstance(error, FileNotFoundError):
            raise
        raise CollectionUnreadable("the file of the collection cannot be read.") from error
    if not stat.S_ISREG(found.st_mode):
        raise CollectionUnreadable("expected a file; what lies there is a folder or a device.")
    return found.st_size


def _check_file(path: Path, size: int) -> bool:
    """Look at the header before SQLite does. Whether the last writer could not close the file."""
    try:
        with path.open("rb") as file:
            header = file.read(100)
    except OSError as error:
        raise CollectionUnreadable(
            f"the file of the collection cannot be read: {error.strerror}."
        ) from error
    if len(header) < 100 or not header.startswith(b"SQLite format 3\0"):
        raise CollectionUnreadable("the file is not a collection: it is not an SQLite file.")
    (application_id,) = struct.unpack_from(">I", header, 68)
    (version,) = struct.unpack_from(">I", header, 60)
    if application_id != APPLICATION_ID:
        raise CollectionUnreadable("the file is not a collection, but another SQLite file.")
    if version != SCHEMA_VERSION:
        raise CollectionUnreadable(
            f"the collection has format {version}; this sidecar reads format {SCHEMA_VERSION}. "
            "Use the version of the app that wrote it, or a newer one."
        )
    beside = any(_begins(Path(f"{path}{end}")) for end in ("-wal", "-journal"))
    (page,) = struct.unpack_from(">H", header, 16)
    (pages,) = struct.unpack_from(">I", header, 28)
    expected = pages * (65536 if page == 1 else page)
    if size < expected and not beside:
        raise CollectionUnreadable(
            f"the collection is cut short: expected {expected} bytes, found {size}. {_DAMAGED}"
        )
    return beside or header[18:20] == b"\2\2"


def _begins(path: Path) -> bool:
    """Whether there is a journal with anything to put in order: one that begins with 0 is spent."""
    try:
        with path.open("rb") as file:
            return file.read(1) not in (b"", b"\0")
    except OSError:
        return False


def _uri(path: Path) -> str:
    uri = path.as_uri()
    return uri if uri.startswith("file:///") else uri.replace("file://", "file:////", 1)


@contextlib.contextmanager
def _told(store: CaseStore | None) -> Iterator[None]:
    """SQLite's errors as ours."""
    try:
        yield
    except sqlite3.Error as error:
        told = _translated(error)
        if store is not None and isinstance(told, CollectionUnreadable):
            store.damage = told
        raise told from error


def _translated(error: sqlite3.Error) -> SidecarError:
    name = getattr(error, "sqlite_errorname", "")
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return CollectionBusy(
            "the collection is open in another program. Close it there, or wait until it has ended."
        )
    if name.startswith("SQLITE_FULL"):
        return CollectionDiskFull(
            "the disk is full: nothing was written, and the collection can still be read. Make "
            "room, and try again."
        )
    if name.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM")):
        return CollectionReadOnly(f"the collection cannot be written or opened ({name}).")
    if name.startswith("SQLITE_IOERR"):
        return CollectionUnreadable(
            f"the collection's disk answers with errors ({name}). Check the disk, and try again."
        )
    return CollectionUnreadable(f"the collection is damaged ({name or error}). {_DAMAGED}")
