"""A block of items becomes rows: what the encoder makes of each image, or why it makes nothing.

`BlockEncoder` is what an actor of the job holds. It knows no Ray: any program may call it.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from build.corpus_plan import About, Block, Folder
from build.corpus_source import Item, Reader
from sidecar import __version__, manifest, quantised
from sidecar.collection import Vectors
from sidecar.errors import Internal, ResourcesExhausted, SidecarError, exhausted
from sidecar.manifest import TOKENS
from sidecar.places import REGIONS
from sidecar.vision_encoder import Encoding, VisionEncoder

COMPRESSION = "zstd"
SUSPICIOUS = (
    3  # times that a block was begun: from then on each image is noted before it is encoded
)
GUILTY = 2  # processes that ended at one image
RETRYABLE = (ResourcesExhausted.code,)


class Encodes(Protocol):
    """What a block needs of `VisionEncoder`."""

    def encode(self, image: bytes, *, resolution: tuple[int, int]) -> Encoding:
        """Of the bytes of one image file. Raises SidecarError."""
        ...


@dataclass(frozen=True, slots=True)
class Job:
    """What every actor has to know."""

    model: str  # the directory, on each machine
    out: str
    about: About
    cores: int
    kernels: str


@dataclass(frozen=True, slots=True)
class Asked:
    """What the person at the terminal chose about the rows. `resolution` None: the model's own."""

    source: str
    model: Path
    resolution: int | None
    cores: int
    kernels: str
    tokens: bool

    def job(self, out: str, block: int) -> Job:
        """The job of encoding them. Raises ModelInvalid, RequestMalformed."""
        described = manifest.read(self.model)
        side = described.side(self.resolution)
        about = About(
            source=self.source if "://" in self.source else str(Path(self.source).absolute()),
            model=described.digest,
            recipe=described.recipe,
            projection=described.projection,
            resolution=(side, side),
            dims=described.text_hidden,
            encoder=__version__,
            tokens=self.tokens,
            block=block,
        )
        return Job(str(self.model.absolute()), out, about, self.cores, self.kernels)


@dataclass(frozen=True, slots=True)
class Done:
    """A block that is written."""

    block: Block
    images: int
    errors: int
    seconds: float


def schema(about: About) -> pa.Schema:
    """Of the rows. What an image with an `error` lacks is null.

    `pooled_embedding` is float32, as `sidecar encode` gives the vector and as other engines want
    it; a collection derives its 8 bits from it. `regions` is a collection's record: for each of 16
    regions a float16 scale and `dims` int8, little-endian. `norms` is the least and the largest L2
    norm of the tokens.
    """
    fields = [
        pa.field("id", pa.string(), nullable=False),
        ("metadata", pa.string()),
        ("pooled_embedding", pa.list_(pa.float32(), about.dims)),
        ("regions", pa.binary()),
        ("norms", pa.list_(pa.float64(), 2)),
        ("flat", pa.bool_()),
        ("model", pa.string()),
        ("recipe", pa.string()),
        ("projection", pa.string()),
        ("resolution", pa.list_(pa.int32(), 2)),
        ("encoder", pa.string()),
        ("milliseconds", pa.float32()),
        ("error", pa.string()),
        ("error_message", pa.string()),
    ]
    if about.tokens:
        fields.append(("projected_embeddings", pa.list_(pa.float32(), TOKENS * about.dims)))
    return pa.schema(fields)


def load(job: Job) -> VisionEncoder:
    """Raises ModelInvalid, ModelUnfaithful, ResourcesExhausted."""
    kernels: Any = job.kernels
    return VisionEncoder(job.model, threads=job.cores, kernels=kernels)


class BlockEncoder:
    """Encodes blocks one after another, and writes each before it takes the next."""

    def __init__(self, job: Job, load: Callable[[Job], Encodes] = load) -> None:
        self._job = job
        self._encoder = load(job)
        self._folder = Folder(job.out)
        self._reader = Reader(job.about.source)
        self.schema = schema(job.about)

    def __call__(self, block: Block) -> Done:
        """Raises OSError where the rows cannot be written."""
        there = self._folder.rows_of(block)
        if there is not None:  # the machine was lost after it wrote them, before it could tell
            return Done(block, *there, 0.0)
        begun = time.perf_counter()
        rows = self._rows(block)
        table = pa.Table.from_pylist(rows, self.schema)
        sink = pa.BufferOutputStream()
        # Vectors are noise to a dictionary; the texts that all rows share are not.
        texts = [field.name for field in self.schema if pa.types.is_string(field.type)]
        pq.write_table(table, sink, compression=COMPRESSION, use_dictionary=texts)
        self._folder.write(block.name, sink.getvalue())
        self._folder.drop_note(block)
        errors = sum(row["error"] is not None for row in rows)
        return Done(block, len(rows), errors, time.perf_counter() - begun)

    def _rows(self, block: Block) -> list[dict[str, Any]]:
        note = self._folder.note(block)
        if note.at >= 0:
            note.ended[str(note.at)] = note.ended.get(str(note.at), 0) + 1
        note.begun, note.at = note.begun + 1, -1
        self._folder.set_note(block, note)
        rows = []
        items = self._folder.items(block, self._job.about.block)
        for place, item in enumerate(items):
            if note.ended.get(str(place), 0) >= GUILTY:
                rows.append(self._row(item, ended))
                continue
            if note.begun > SUSPICIOUS:
                note.at = place
                self._folder.set_note(block, note)
            rows.append(self.row(item))
        # A machine that was short of memory may have some by now.
        for place, item in enumerate(items):
            if rows[place]["error"] in RETRYABLE:
                rows[place] = self.row(item)
        return rows

    def row(self, item: Item) -> dict[str, Any]:
        """Of one image; whatever is wrong with it is an `error`, by the sidecar's codes."""
        return self._row(item, self._encoded)

    def _row(self, item: Item, encoded: Callable[[Item], dict[str, Any]]) -> dict[str, Any]:
        about = self._job.about
        begun = time.perf_counter()
        common = {
            "id": item.id,
            "metadata": item.metadata,
            "model": about.model,
            "recipe": about.recipe,
            "projection": about.projection,
            "resolution": about.resolution,
            "encoder": about.encoder,
        }
        try:
            found = encoded(item)
        except SidecarError as error:
            found = {"error": error.code, "error_message": str(error)}
        except Exception as error:
            known = exhausted(error) or Internal(f"a bug: {type(error).__name__}.")
            found = {"error": known.code, "error_message": str(known)}
        milliseconds = (time.perf_counter() - begun) * 1e3
        return {"error": None, **common, **found, "milliseconds": milliseconds}

    def _encoded(self, item: Item) -> dict[str, Any]:
        about = self._job.about
        data = self._reader.read(item)
        encoding = self._encoder.encode(data, resolution=about.resolution)
        pooled, tokens = encoding.pooled_embedding[0], encoding.projected_embeddings[0]
        vectors = Vectors.of(pooled, tokens)
        vectors.check(about.dims)
        found: dict[str, Any] = {
            "pooled_embedding": pooled,
            "regions": quantised.pack(vectors.regions),
            "norms": encoding.norms[0],
            "flat": encoding.flat[0],
        }
        if about.tokens:
            found["projected_embeddings"] = tokens.reshape(-1)
        return found


def ended(_: Item) -> dict[str, Any]:
    """Raises Internal."""
    raise Internal(f"the encoder's process ended {GUILTY} times while it encoded this image.")


def vectors(pooled: NDArray[np.float32], regions: bytes) -> Vectors:
    """Of a row, for a collection."""
    dims = len(pooled)
    if len(regions) != quantised.packed_size(REGIONS, dims):
        raise ValueError("the regions are not of this vector's length")
    return Vectors(pooled, quantised.unpack(regions, dims))
