"""A directory in Hugging Face format becomes the vision tower and the projector alone.

Bytes are copied as they are stored, a few megabytes at a time: memory does not grow with the
checkpoint. Knows nothing of the hub's ways, nor of torch.
"""

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from build import hub, tower
from build.artifacts import (
    CONFIG,
    SOURCE,
    WEIGHTS,
    Artifact,
    BuildError,
    Geometry,
    Inputs,
    write_geometry,
)
from build.tower import ADAPTER, FLOATS, INDEX, PROCESSORS, SINGLE, Piece, Tensor
from sidecar.manifest import Normalisation

RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
HUB_ID = re.compile(r"[\w.-]+(?:/[\w.-]+)?")
# A float is NaN or infinite where all the bits of its exponent are set.
EXPONENT = {"F16": (np.uint16, 0x7C00), "BF16": (np.uint16, 0x7F80), "F32": (np.uint32, 0x7F800000)}


@dataclass(frozen=True)
class Checkpoint:
    """Reads a directory in Hugging Face format; writes WEIGHTS, CONFIG, GEOMETRY and SOURCE.

    Tensors keep the dtype that they are stored in and go by our names for them. `revision` stands
    for what `directory` holds: a commit, or the hash of its contents. Raises BuildError.
    """

    model_id: str
    revision: str
    directory: Path = field(repr=False)  # the same content elsewhere is the same checkpoint

    reads: ClassVar = ()
    writes: ClassVar = Artifact.CHECKPOINT

    def __call__(self, _: Inputs, out: Path) -> None:
        source = self.directory
        pieces = _select(source, self.model_id)
        shutil.copyfile(source / CONFIG, out / CONFIG)
        write_geometry(_geometry(source, self.model_id), out)
        # Widest type first, as the safetensors library does, so that every tensor is aligned.
        widest_first = dict(
            sorted(pieces.items(), key=lambda item: (-FLOATS[item[1].tensor.dtype], item[0]))
        )
        with (out / WEIGHTS).open("wb") as target:
            target.write(tower.header({name: p.tensor for name, p in widest_first.items()}))
            for name, piece in widest_first.items():
                for chunk in _finite(name, source, piece):
                    target.write(chunk)
        text_of_source = json.dumps(
            {"model_id": self.model_id, "revision": self.revision}, indent=2
        )
        (out / SOURCE).write_text(text_of_source + "\n", encoding="utf-8")


def locate(source: str, revision: str | None = None) -> Checkpoint:
    """Turn what the user typed into the pipeline's first step.

    A directory is taken as it is, its contents' hash for its revision. A hub id is fetched, as far
    as it is in no cache yet. Raises BuildError.
    """
    directory = Path(source).expanduser()
    if directory.is_dir():
        if revision is not None:
            raise BuildError("--revision goes with a hub id; a directory has only what it holds.")
        directory = directory.resolve()
        return Checkpoint(directory.name, fingerprint(directory), directory)
    if directory.exists() or not HUB_ID.fullmatch(source):
        raise BuildError(
            f"expected a directory in Hugging Face format or a hub id such as "
            f"google/medgemma-4b-it, found neither at {source}."
        )
    commit, place = hub.fetch(source, revision)
    return Checkpoint(source, commit, place)


def fingerprint(directory: Path) -> str:
    """A hash of all that `Checkpoint` keeps of `directory`. Raises BuildError."""
    pieces = _select(directory, directory.name)
    digest = sha256((directory / CONFIG).read_bytes())
    digest.update(_preprocessor(directory) or b"")
    for name, piece in pieces.items():
        digest.update(f"{name} {piece.tensor.dtype} {piece.tensor.shape}".encode())
        for chunk in _chunks(directory, piece):
            digest.update(chunk)
    return digest.hexdigest()[:40]


def _select(directory: Path, name: str) -> dict[str, Piece]:
    if not (directory / CONFIG).is_file():
        if (directory / ADAPTER).is_file():
            raise tower.adapter_error((directory / ADAPTER).read_bytes(), name)
        raise BuildError(f"{name} has no {CONFIG}; expected a model in Hugging Face format.")
    config = tower.read_config((directory / CONFIG).read_bytes(), name)
    return tower.select(_headers(directory, name), config)


def _headers(directory: Path, name: str) -> dict[str, dict[str, Tensor]]:
    if (directory / SINGLE).is_file():
        return {SINGLE: tower.read_header(directory / SINGLE)}
    if not (directory / INDEX).is_file():
        if (directory / ADAPTER).is_file():
            raise tower.adapter_error((directory / ADAPTER).read_bytes(), name)
        raise BuildError(
            f"{name} has neither {SINGLE} nor {INDEX}; expected weights in safetensors format. "
            "Save it again with Transformers' save_pretrained."
        )
    headers: dict[str, dict[str, Tensor]] = {}
    for file in tower.shard_names((directory / INDEX).read_bytes()):
        if not (directory / file).is_file():
            raise BuildError(f"{name} lacks the shard {file}. Download or copy it again.")
        headers[file] = tower.read_header(directory / file)
    return headers


def _geometry(directory: Path, name: str) -> Geometry:
    config = tower.read_config((directory / CONFIG).read_bytes(), name)
    vision, text = tower.sizes(config)
    settings: dict[str, Any] = json.loads(_preprocessor(directory) or b"{}")
    default = Normalisation()
    return Geometry(
        patch_size=vision["patch_size"],
        native=vision["image_size"],
        layers=vision["num_hidden_layers"],
        hidden=vision["hidden_size"],
        text_hidden=text["hidden_size"],
        normalisation=Normalisation(
            mean=tuple(settings.get("image_mean", default.mean)),
            std=tuple(settings.get("image_std", default.std)),
            resample=RESAMPLE[settings.get("resample", 2)],
            rescale=float(settings.get("rescale_factor", default.rescale)),
        ),
    )


def _preprocessor(directory: Path) -> bytes | None:
    own, within = (directory / file for file in PROCESSORS)
    if own.is_file():
        return own.read_bytes()
    if within.is_file():
        try:
            settings = json.loads(within.read_bytes()).get("image_processor")
        except (ValueError, AttributeError) as error:
            raise BuildError(f"{within.name} is not a JSON object. Download it again.") from error
        if settings is not None:
            return (json.dumps(settings, indent=2, sort_keys=True) + "\n").encode()
    return None


def _chunks(directory: Path, piece: Piece) -> Iterator[bytes]:
    return tower.read(directory / piece.file, piece.tensor.start, piece.tensor.stop)


def _finite(name: str, directory: Path, piece: Piece) -> Iterator[bytes]:
    width: npt.DTypeLike
    width, exponent = EXPONENT[piece.tensor.dtype]
    for chunk in _chunks(directory, piece):
        bits = np.frombuffer(chunk, width)
        if ((bits & exponent) == exponent).any():
            raise BuildError(
                f"{name} holds NaN or infinity, expected finite weights. Use a checkpoint whose "
                f"training did not diverge. If {tower.named(directory / piece.file)} was "
                "damaged, delete it, and download or copy it again."
            )
        yield chunk
