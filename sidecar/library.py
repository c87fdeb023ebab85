"""`index` and `search`, for a person in a terminal: folders of images and a collection of them."""

import csv
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import numpy as np

from sidecar import encoder, manifest, png
from sidecar.case import check_id, metadata_text
from sidecar.collection import Collection, Match, Vectors, check_same
from sidecar.collection_ops import about, as_json
from sidecar.console import FAILED, complain, say
from sidecar.encoder import Encoder
from sidecar.errors import CollectionNotFound, RequestMalformed, SidecarError
from sidecar.files import read, write
from sidecar.job import ImageFile, Job, Rgb
from sidecar.manifest import Manifest
from sidecar.protocol import CASE_OUTPUTS
from sidecar.settings import Settings

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
FOLDERS = "folders"  # the note of where the images of a collection lie, seen from its own folder
SHOWN = 60  # characters of metadata in a table
PROGRESS_S = 1.0


def index(settings: Settings, stdout: BinaryIO) -> int:
    """Add every image that is not there yet. A bad file is told at the end. The exit code."""
    try:
        described = manifest.read(settings.model)
        images = _images(settings.sources)
        metadata = {} if settings.metadata is None else _metadata(settings.metadata)
        collection = _open_to_add(settings, described)
    except (SidecarError, OSError, ValueError) as error:
        return complain(error)
    try:
        return _index(settings, stdout, described, images, metadata, collection)
    except (SidecarError, OSError) as error:
        return complain(error)
    finally:
        collection.close()


def search(settings: Settings, stdout: BinaryIO) -> int:
    """Print the most similar cases as a table or JSON; with `out`, draw them. The exit code."""
    try:
        described = manifest.read(settings.model)
        collection = Collection.open(settings.collection.absolute(), None, read_only=True)
    except SidecarError as error:
        return complain(error)
    try:
        resolution = collection.store.about.resolution
        check_same(collection.store.about, about(described, resolution))
        loaded = encoder.load(described, settings)
        data = read(settings.images[0])
        vectors = _vectors(loaded, data, resolution)
        wanted = settings.json or settings.out != Path()
        matches = collection.search(vectors, settings.k, regions=wanted)
        if settings.out != Path():
            _draw(settings, loaded, data, collection, matches)
        say(stdout, (_json(matches) if settings.json else _table(matches)).encode())
    except (SidecarError, OSError) as error:
        return complain(error)
    finally:
        collection.close()
    return 0


# index


def _open_to_add(settings: Settings, described: Manifest) -> Collection:
    path = settings.collection.absolute()
    side = settings.resolution
    if side is None:
        try:
            there = Collection.open(path, None)
        except CollectionNotFound:
            pass
        else:
            resolution = there.store.about.resolution
            there.close()
            return Collection.open(path, about(described, resolution))
    side = described.side(side)
    return Collection.open(path, about(described, (side, side)), create=True)


def _index(
    settings: Settings,
    stdout: BinaryIO,
    described: Manifest,
    images: Mapping[str, Path],
    metadata: Mapping[str, dict[str, Any]],
    collection: Collection,
) -> int:
    there = {case.id for case in collection.store.cases()}
    new = [(id, path) for id, path in images.items() if id not in there]
    bad: list[tuple[str, str]] = []
    added = 0
    if new:
        loaded = encoder.load(described, settings)
        _note_folders(settings, collection)
        progress = Progress(len(new))
        for id, path in new:
            try:
                vectors = _vectors(loaded, read(path), collection.store.about.resolution)
            except SidecarError as error:
                bad.append((id, f"{error.code}: {error}"))
            else:
                collection.add(id, vectors, metadata.get(id, {}))
                added += 1
            progress.step(len(bad))
        progress.end()
    lines = [
        f"{added} added, {len(images) - len(new)} there already, {len(bad)} bad; "
        f"{collection.count} cases in the collection"
    ]
    strange = [id for id in metadata if id not in images]
    if strange:
        lines.append(f"{len(strange)} ids of the metadata belong to no image, such as {strange[0]}")
    lines += [f"bad  {printable(id)}: {why}" for id, why in bad]
    say(stdout, "".join(f"{line}\n" for line in lines).encode())
    return FAILED if bad else 0


def _images(sources: tuple[Path, ...]) -> dict[str, Path]:
    """By id: the file's name, seen from the folder that was given. Raises ValueError."""
    found: dict[str, Path] = {}
    for source in sources:
        if not source.exists():
            raise ValueError(f"there is no file or folder {source}.")
        for path in sorted(image_files(source)) if source.is_dir() else [source]:
            id = path.relative_to(source).as_posix() if source.is_dir() else path.name
            if id in found:
                raise ValueError(
                    f"two images would have the id {id}. Index the folder above them instead."
                )
            found[id] = path
    for id in found:
        check_id(id)
    return found


def image_files(folder: Path, suffixes: tuple[str, ...] = SUFFIXES) -> Iterator[Path]:
    """Image files at any depth, but no hidden ones: copies from a Mac are full of those."""
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and Path(name).suffix.lower() in suffixes:
                yield Path(parent) / name


def _metadata(path: Path) -> dict[str, dict[str, Any]]:
    """By id, from CSV or JSON lines. Raises ValueError, OSError."""
    found: dict[str, dict[str, Any]] = {}
    for number, row in metadata_rows(path):
        try:
            id = check_id(row.pop("id", None))
            metadata_text(row)
        except RequestMalformed as error:
            raise ValueError(f"the metadata's line {number}: {error}") from error
        if id in found:
            raise ValueError(f"the metadata have the id {id} twice; again in line {number}.")
        found[id] = row
    return found


def metadata_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers and rows of CSV or JSON lines. Raises ValueError, OSError."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        if path.suffix.lower() == ".csv":
            yield from csv_rows(file, "the metadata's")
            return
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise ValueError(f"the metadata's line {number} is no JSON.") from error
                if not isinstance(row, dict):
                    raise ValueError(f"the metadata's line {number} is no JSON object.")
                yield number, row


def csv_rows(file: TextIO, whose: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers and rows, by the names in the first line. Raises ValueError, which says `whose`
    line it is.
    """
    table = csv.DictReader(file, restkey="", strict=True)
    try:
        for row in table:
            if "" in row or None in row.values():
                raise ValueError(
                    f"{whose} line {table.line_num} has another number of columns than the first."
                )
            yield table.line_num, row
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{whose} text is no CSV in UTF-8: {error}.") from error


def _note_folders(settings: Settings, collection: Collection) -> None:
    """Keep where the images lie, so that `search --out` can show them."""
    home = collection.store.path.parent
    known = json.loads(collection.store.note(FOLDERS) or "[]")
    for source in settings.sources:
        folder = source if source.is_dir() else source.parent
        try:
            relative = Path(os.path.relpath(folder.resolve(), home.resolve())).as_posix()
        except ValueError:  # another drive of Windows
            relative = folder.resolve().as_posix()
        if relative not in known:
            known.append(relative)
    with collection.store.writing():
        collection.store.put_note(FOLDERS, json.dumps(known))


@dataclass(slots=True)
class Progress:
    """One line on stderr: how many are done, and how long the rest will take."""

    total: int
    done: int = 0
    begun: float = 0.0
    shown: float = 0.0

    def __post_init__(self) -> None:
        self.begun = time.monotonic()

    def step(self, bad: int) -> None:
        self.done += 1
        now = time.monotonic()
        if now - self.shown < PROGRESS_S and self.done < self.total:
            return
        self.shown = now
        left = (now - self.begun) / self.done * (self.total - self.done)
        words = f"{self.done} of {self.total}, {bad} bad, about {duration(left)} left"
        on_terminal = sys.stderr.isatty()
        start, end = ("\r\x1b[K", "") if on_terminal else ("", "\n")
        print(f"{start}{words}", end=end, file=sys.stderr, flush=True)

    def end(self) -> None:
        if sys.stderr.isatty():
            print(file=sys.stderr)


def duration(seconds: float) -> str:
    """For people: one unit."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}" if unit == "h" else f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


# search


def _vectors(loaded: Encoder, data: bytes, resolution: tuple[int, int]) -> Vectors:
    arrays = loaded.encode(Job(ImageFile(data), resolution, CASE_OUTPUTS)).arrays
    pooled, projected = (np.asarray(arrays[name], np.float32)[0] for name in CASE_OUTPUTS)
    return Vectors.of(pooled, projected)


def _json(matches: list[Match]) -> str:
    return json.dumps({"matches": as_json(matches)}, ensure_ascii=False, indent=1) + "\n"


def _table(matches: list[Match]) -> str:
    if not matches:
        return "the collection is empty\n"
    rows = [("rank", "similarity", "id", "metadata")]
    for rank, match in enumerate(matches, 1):
        metadata = "" if match.metadata == "{}" else match.metadata
        short = metadata if len(metadata) <= SHOWN else f"{metadata[: SHOWN - 1]}…"
        rows.append((str(rank), f"{match.similarity:.3f}", printable(match.id), printable(short)))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = []
    for row in rows:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        lines.append(f"{line.rstrip()}\n")
    return "".join(lines)


def printable(text: str) -> str:
    """What somebody else chose, safe to show in a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _draw(
    settings: Settings, loaded: Encoder, data: bytes, collection: Collection, matches: list[Match]
) -> None:
    from sidecar import contact_sheet  # Pillow, which no other command of this process needs

    folders = [settings.folder] if settings.folder else _folders(collection)
    side = contact_sheet.SIDE
    entries = [
        contact_sheet.Entry(
            f"{rank}   {match.similarity:.3f}   {printable(match.id)}",
            _image(loaded, folders, match.id, side),
            match.regions or (),
        )
        for rank, match in enumerate(matches, 1)
    ]
    pixels = contact_sheet.draw(loaded.thumbnail(data, side), entries)
    write(settings.out, png.write(pixels.shape[1], pixels.shape[0], [pixels], {}))
    missing = sum(entry.image is None for entry in entries)
    if missing:
        complain(
            ValueError(
                f"{missing} of {len(entries)} images were not found; --images DIR says where "
                "the images lie."
            )
        )


def _folders(collection: Collection) -> list[Path]:
    home = collection.store.path.parent
    return [home / name for name in json.loads(collection.store.note(FOLDERS) or "[]")]


def _image(loaded: Encoder, folders: list[Path], id: str, side: int) -> Rgb | None:
    for folder in folders:
        path = folder / id
        # An id is text that anybody may have chosen: it must not lead out of the folder.
        if ".." in path.parts[len(folder.parts) :] or Path(id).is_absolute() or "\0" in id:
            continue
        try:
            return loaded.thumbnail(read(path), side)
        except (SidecarError, OSError):
            continue
    return None
