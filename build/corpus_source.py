"""What a corpus is made of: a source becomes items (an id, where the bytes lie, metadata). It knows
folders, lists and Parquet files, here or in object storage; no encoder, no Ray.
"""

import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from build.errors import BuildError
from sidecar.case import check_id, metadata_text
from sidecar.errors import ImageUnreadable, RequestMalformed, RequestTooLarge, SidecarError
from sidecar.library import SUFFIXES, csv_rows, image_files
from sidecar.settings import Limits

MAX_FILE_BYTES = Limits().max_frame_bytes  # what the sidecar takes of a client, too
IMAGES = ("image", "bytes")  # columns that may hold the bytes of image files
ROWS = 1024  # of a Parquet file, at a time
EXPECTED = (
    "Expected a folder of images, a CSV or Parquet file with a column path, or Parquet files with "
    "a column image or bytes."
)


@dataclass(frozen=True, slots=True)
class Item:
    """One image. `path` is of a file system's own kind (see `file_system`); `row` is its place in
    that file where it is Parquet that holds images, else -1.
    """

    id: str
    path: str
    row: int
    metadata: str  # a JSON object


def file_system(place: str | Path) -> tuple[pafs.FileSystem, str]:
    """The file system of a path or URL (s3://, gs://, abfs://, hdfs://, file://), and its own path.

    Raises BuildError.
    """
    text = str(place)
    try:
        if "://" not in text:
            return pafs.LocalFileSystem(), Path(text).absolute().as_posix()
        found, path = pafs.FileSystem.from_uri(text)
    except (pa.ArrowException, ValueError, OSError) as error:
        raise BuildError(
            f"expected a path, or a URL of file, s3, gs, abfs or hdfs; {text} cannot be opened: "
            f"{error}"
        ) from error
    return found, path.rstrip("/")


def items(source: str) -> Iterator[Item]:
    """All images of a source, in a stable order. Raises BuildError where an id is missing, not
    allowed, or there twice; OSError.
    """
    known: set[str] = set()
    for number, (id, path, row, metadata) in enumerate(_found(source), 1):
        try:
            item = Item(check_id(id), path, row, metadata_text(metadata))
        except RequestMalformed as error:
            raise BuildError(f"image {number} of {source}: {error}") from error
        if id in known:
            raise BuildError(
                f"{source} has the id {id!r} twice. Give each image an id of its own in a column "
                "id, or make two corpora of them."
            )
        known.add(id)
        yield item


Found = tuple[Any, str, int, Mapping[str, Any]]


def _found(source: str) -> Iterator[Found]:
    files, path = file_system(source)
    kind = files.get_file_info(path).type
    if kind == pafs.FileType.Directory:
        inside = _files(files, path)
        images = [name for name in inside if name.lower().endswith(SUFFIXES)]
        tables = [name for name in inside if name.lower().endswith(".parquet")]
        if images or not tables:
            base = PurePosixPath(path)
            return ((str(PurePosixPath(name).relative_to(base)), name, -1, {}) for name in images)
        return (found for name in tables for found in _parquet(files, name))
    if kind == pafs.FileType.NotFound:
        raise BuildError(f"there is no {source}. {EXPECTED}")
    if path.lower().endswith(".csv"):
        return _listed(_csv_rows(files, path), path)
    if path.lower().endswith(".parquet"):
        return _parquet(files, path)
    raise BuildError(f"{source} is none of these. {EXPECTED}")


def _files(files: pafs.FileSystem, folder: str) -> list[str]:
    """Files at any depth, but no hidden ones, in order."""
    if isinstance(files, pafs.LocalFileSystem):
        wanted = (*SUFFIXES, ".parquet")
        return sorted(path.as_posix() for path in image_files(Path(folder), wanted))
    base = PurePosixPath(folder)
    inside = files.get_file_info(pafs.FileSelector(folder, recursive=True))
    return sorted(
        info.path
        for info in inside
        if info.type == pafs.FileType.File
        and not any(part[0] in "._" for part in PurePosixPath(info.path).relative_to(base).parts)
    )


def _csv_rows(files: pafs.FileSystem, path: str) -> Iterator[dict[str, Any]]:
    with files.open_input_stream(path) as stream:
        text = io.TextIOWrapper(stream, "utf-8-sig", newline="")
        try:
            for _, row in csv_rows(text, "the list's"):
                yield row
        except ValueError as error:
            raise BuildError(str(error)) from error


def _parquet(files: pafs.FileSystem, path: str) -> Iterator[Found]:
    table = _open(files, path)
    names = table.schema_arrow.names
    image = next((name for name in IMAGES if name in names), None)
    if image is None:
        yield from _listed(_rows(table, names), path)
        return
    others = [name for name in names if name != image]
    name = PurePosixPath(path).name
    for number, row in enumerate(_rows(table, others)):
        id = row.pop("id", None)
        yield (id or row.get("path") or f"{name}:{number}"), path, number, _plain(row)


def _open(files: pafs.FileSystem, path: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path, filesystem=files)
    except pa.ArrowInvalid as error:
        raise BuildError(f"{path} is no Parquet file: {error}") from error


def _rows(table: pq.ParquetFile, names: list[str]) -> Iterator[dict[str, Any]]:
    if not names:
        yield from ({} for _ in range(table.metadata.num_rows))
        return
    for batch in table.iter_batches(ROWS, columns=names):
        yield from batch.to_pylist()


def _listed(rows: Iterable[dict[str, Any]], path: str) -> Iterator[Found]:
    """Relative paths are seen from the list's own folder."""
    home = PurePosixPath(path).parent
    for row in rows:
        place = row.pop("path", None)
        if not isinstance(place, str) or not place:
            raise BuildError(f"the list {path} has no column path, or a row without one.")
        id = row.pop("id", None)
        # A URL stays what it is: its file system is opened where it is read.
        absolute = place if "://" in place else str(home / place)
        yield (place if id is None else id), absolute, -1, _plain(row)


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata of what JSON can hold; a date, say, as text."""
    kept = (bool, int, float, str, list, dict)
    return {
        name: value if isinstance(value, kept) else str(value)
        for name, value in row.items()
        if value is not None
    }


class Reader:
    """The bytes of items, on whatever machine. Keeps the rows that were read last of a Parquet
    file, since items come in their order.
    """

    def __init__(self, source: str) -> None:
        self._files, _ = file_system(source)
        self._table: tuple[str, pq.ParquetFile, str] | None = None
        self._group: tuple[str, int, int, Any] | None = None  # file, number, first row, images

    def read(self, item: Item) -> bytes:
        """Raises ImageUnreadable, RequestTooLarge."""
        try:
            data = self._row(item) if item.row >= 0 else self._file(item.path)
        except SidecarError:
            raise
        except (OSError, pa.ArrowException, BuildError) as error:
            raise ImageUnreadable("the file cannot be read.") from error
        if len(data) > MAX_FILE_BYTES:
            raise _too_large(len(data))
        return data

    def _file(self, path: str) -> bytes:
        files, inner = file_system(path) if "://" in path else (self._files, path)
        info = files.get_file_info(inner)
        if info.type != pafs.FileType.File:  # a folder, a device, a pipe: never to be waited for
            raise ImageUnreadable("there is no such file.")
        if info.size > MAX_FILE_BYTES:
            raise _too_large(info.size)
        with files.open_input_stream(inner) as stream:
            return bytes(stream.read(MAX_FILE_BYTES + 1))

    def _row(self, item: Item) -> bytes:
        if self._group is None or not (
            self._group[0] == item.path and 0 <= item.row - self._group[2] < len(self._group[3])
        ):
            self._group = (item.path, *self._read_group(item))
        value = self._group[3][item.row - self._group[2]].as_py()
        if isinstance(value, dict):  # as Hugging Face's datasets hold images
            value = value.get("bytes")
        if not isinstance(value, bytes):
            raise ImageUnreadable("the row holds no bytes of an image.")
        return value

    def _read_group(self, item: Item) -> tuple[int, int, Any]:
        if self._table is None or self._table[0] != item.path:
            table = _open(self._files, item.path)
            names = table.schema_arrow.names
            self._table = item.path, table, next(name for name in IMAGES if name in names)
        _, table, column = self._table
        first = 0
        for number in range(table.num_row_groups):
            rows = table.metadata.row_group(number).num_rows
            if item.row < first + rows:
                return number, first, table.read_row_group(number, [column])[column]
            first += rows
        raise ImageUnreadable("the Parquet file has fewer rows than when it was listed.")


def _too_large(size: int) -> RequestTooLarge:
    return RequestTooLarge(f"the file has {size} bytes; {MAX_FILE_BYTES} are allowed.")
