"""The model directory's manifest: what the model is, and the size and SHA-256 of each of its files.

The build writes it with the same type that reads it here. It knows nothing of ONNX: it vouches for
files, it does not open them.
"""

import json
import math
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

from sidecar.errors import ModelInvalid, exhausted

FORMAT = 1
NAME = "manifest.json"
GRID = 16  # every image becomes GRID x GRID tokens
TOKENS = GRID * GRID
RESAMPLES = ("nearest", "bilinear", "bicubic", "lanczos")
MAX_BYTES = 2**20  # of the manifest itself

REBUILD = "Build the model directory again with `python -m build`, or copy it again."


@dataclass(frozen=True, slots=True)
class Normalisation:
    """Bytes to `pixel_values`: resize with `resample`, times `rescale`, less `mean`, over `std`."""

    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    resample: str = "bilinear"
    rescale: float = 1 / 255


@dataclass(frozen=True, slots=True)
class File:
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class CustomOpsGraph:
    """A graph of the same model over the same weights with custom ops: the op types it has."""

    graph: str
    operators: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """`resolutions` are the side lengths, in pixels, that height and width may each take."""

    model_id: str
    revision: str
    recipe: str
    projection: str
    graph: str  # the file that the session opens
    patch_size: int
    vision_hidden: int
    text_hidden: int
    default_resolution: int
    resolutions: tuple[int, ...]
    normalisation: Normalisation
    files: Mapping[str, File]
    tools: Mapping[str, str] = field(default_factory=dict)
    kernels: tuple[CustomOpsGraph, ...] = ()  # the fastest first; where the recipe has them
    golden: str = ""  # what the plain graph made of the golden input, to prove the others by
    # Side length to the spread of token norms up to which an image has no content; see norms.py.
    flat: Mapping[int, float] = field(default_factory=dict)
    format: int = FORMAT
    digest: str = ""  # SHA-256 of manifest.json itself, hence of the whole model; set by `read`


def describe(directory: Path, names: Iterable[str]) -> dict[str, File]:
    """Measure the named files of `directory`."""
    return {name: _measure(directory / name) for name in sorted(names)}


def write(manifest: Manifest, directory: Path) -> None:
    """Write `manifest.json`; the same manifest always gives the same bytes."""
    content = asdict(manifest)
    del content["digest"]
    text = json.dumps(content, indent=2, sort_keys=True) + "\n"
    (directory / NAME).write_text(text, encoding="utf-8")


def read(directory: Path) -> Manifest:
    """Read `manifest.json` and check its form, not yet the files that it names.

    Raises ModelInvalid.
    """
    path = directory / NAME
    try:
        if path.is_symlink() or not stat.S_ISREG(path.stat().st_mode):
            raise ModelInvalid(f"{NAME} is a link or no file. {REBUILD}")
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise ModelInvalid(
            f"expected a model directory with a {NAME}, found none. "
            "Point --model at a directory that `python -m build` made."
        ) from error
    except OSError as error:
        raise exhausted(error) or ModelInvalid(
            f"{NAME} cannot be read: {error.strerror}. {REBUILD}"
        ) from error
    if len(content) > MAX_BYTES:
        raise ModelInvalid(f"{NAME} is larger than {MAX_BYTES} bytes. {REBUILD}")
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError too
        raise ModelInvalid(f"{NAME} is not JSON. {REBUILD}") from error
    if not isinstance(fields, dict):
        raise ModelInvalid(f"{NAME} is not a JSON object. {REBUILD}")
    if fields.get("format") != FORMAT:
        raise ModelInvalid(
            f"{NAME} has format {fields.get('format')!r}; this sidecar reads format {FORMAT}. "
            "Use the sidecar and the model directory that were released together."
        )
    return _parse(fields, sha256(content).hexdigest())


def check_files(manifest: Manifest, directory: Path) -> None:
    """Compare size and SHA-256 of every file with the manifest's. Raises ModelInvalid."""
    root = directory.resolve()
    for name, expected in manifest.files.items():
        path = directory / name
        if path.is_symlink() or path.resolve().parent != root:
            raise ModelInvalid(f"{name} is a link or lies outside the model directory. {REBUILD}")
        try:
            if not stat.S_ISREG(path.stat().st_mode):
                raise ModelInvalid(f"{name} is no file. {REBUILD}")
            size = path.stat().st_size
            if size != expected.bytes:
                raise ModelInvalid(
                    f"{name} has {size} bytes where the manifest says {expected.bytes}. {REBUILD}"
                )
            measured = _measure(path)
        except FileNotFoundError as error:
            raise ModelInvalid(f"{name} is missing. {REBUILD}") from error
        except OSError as error:
            raise exhausted(error) or ModelInvalid(
                f"{name} cannot be read: {error.strerror}. {REBUILD}"
            ) from error
        if measured.sha256 != expected.sha256:
            raise ModelInvalid(
                f"{name} has changed: its SHA-256 begins {measured.sha256[:12]} where the manifest "
                f"says {expected.sha256[:12]}. {REBUILD}"
            )


def load(directory: Path) -> Manifest:
    """`read`, then `check_files`: what comes back describes files that are as they were built."""
    manifest = read(directory)
    check_files(manifest, directory)
    return manifest


def _measure(path: Path) -> File:
    with path.open("rb") as stream:
        digest = file_digest(stream, "sha256").hexdigest()
        return File(stream.tell(), digest)


def _parse(fields: dict[str, Any], digest: str) -> Manifest:
    try:
        normalisation = fields["normalisation"]
        manifest = Manifest(
            model_id=str(fields["model_id"]),
            revision=str(fields["revision"]),
            recipe=str(fields["recipe"]),
            projection=str(fields["projection"]),
            graph=str(fields["graph"]),
            patch_size=int(fields["patch_size"]),
            vision_hidden=int(fields["vision_hidden"]),
            text_hidden=int(fields["text_hidden"]),
            default_resolution=int(fields["default_resolution"]),
            resolutions=tuple(int(side) for side in fields["resolutions"]),
            normalisation=Normalisation(
                mean=_triple(normalisation["mean"]),
                std=_triple(normalisation["std"]),
                resample=str(normalisation["resample"]),
                rescale=float(normalisation["rescale"]),
            ),
            files={
                str(name): File(int(file["bytes"]), str(file["sha256"]))
                for name, file in fields["files"].items()
            },
            kernels=tuple(
                CustomOpsGraph(str(entry["graph"]), tuple(str(name) for name in entry["operators"]))
                for entry in fields["kernels"]
            ),
            golden=str(fields.get("golden", "")),
            flat={int(side): float(limit) for side, limit in fields.get("flat", {}).items()},
            tools={str(name): str(version) for name, version in fields["tools"].items()},
            digest=digest,
        )
    except KeyError as error:
        raise ModelInvalid(f"{NAME} lacks the key {error}. {REBUILD}") from error
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ModelInvalid(f"{NAME} has a value of the wrong type: {error}. {REBUILD}") from error
    _check(manifest)
    return manifest


def _check(manifest: Manifest) -> None:
    for name, file in manifest.files.items():
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
            raise ModelInvalid(
                f"{NAME} names a file outside the model directory, or with other characters than "
                f"letters, digits, dot, dash and underscore. {REBUILD}"
            )
        if not re.fullmatch(r"[0-9a-f]{64}", file.sha256) or file.bytes < 0:
            raise ModelInvalid(f"{NAME} has no proper size and SHA-256 for {name}. {REBUILD}")
    if manifest.graph not in manifest.files:
        raise ModelInvalid(f"{NAME} names the graph {manifest.graph} but not its size. {REBUILD}")
    beside = {entry.graph for entry in manifest.kernels} | ({manifest.golden} - {""})
    if not beside <= {*manifest.files} or (manifest.kernels and not manifest.golden):
        raise ModelInvalid(f"{NAME} names kernels or a golden record without a size. {REBUILD}")
    step = GRID * manifest.patch_size
    sides = manifest.resolutions
    if step <= 0 or not sides or any(side <= 0 or side % step for side in sides):
        raise ModelInvalid(f"{NAME} has resolutions that are not multiples of {step}. {REBUILD}")
    if manifest.default_resolution not in sides:
        raise ModelInvalid(f"{NAME} has a default resolution that it does not allow. {REBUILD}")
    if min(manifest.vision_hidden, manifest.text_hidden) <= 0:
        raise ModelInvalid(f"{NAME} has a hidden size below 1. {REBUILD}")
    if any(not 0 <= limit <= 1 for limit in manifest.flat.values()):
        raise ModelInvalid(f"{NAME} has a limit for flat images outside 0 to 1. {REBUILD}")
    how = manifest.normalisation
    numbers = (*how.mean, *how.std, how.rescale)
    if how.resample not in RESAMPLES or 0 in how.std or not all(map(math.isfinite, numbers)):
        raise ModelInvalid(f"{NAME} has a normalisation that cannot be computed. {REBUILD}")


def _triple(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue
