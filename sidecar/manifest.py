"""The model directory's manifest: what the model is, and the size and SHA-256 of each of its files.

The build writes it with the same type that reads it here. It knows nothing of ONNX;
`model_files.py` checks the files.
"""

import json
import math
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

from sidecar.errors import ModelInvalid, RequestMalformed, exhausted

FORMAT = 1
NAME = "manifest.json"
GRID = 16  # every image becomes GRID x GRID tokens
TOKENS = GRID * GRID
RESAMPLES = ("nearest", "bilinear", "bicubic", "lanczos")
MAX_BYTES = 2**20  # of the manifest itself
MAX_FILES = 64
MAX_SIDE = 16_384  # pixels
MAX_WHOLE = 2**53
MAX_LEVEL = 1e6  # of a normalised pixel

_JSON = {dict: "an object", list: "a list", str: "text", int: "a whole number", float: "a number"}

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
    # How collections keep a vector's numbers: int8, or int16 where `build.retrieval` chose it.
    collections: str = "int8"
    format: int = FORMAT
    digest: str = ""  # SHA-256 of manifest.json itself, hence of the whole model; set by `read`

    def side(self, wanted: int | None) -> int:
        """The side length in pixels that a person asks for, or the default one for None.

        Raises RequestMalformed where the model does not take that.
        """
        side = self.default_resolution if wanted is None else wanted
        if side not in self.resolutions:
            allowed = ", ".join(map(str, self.resolutions))
            raise RequestMalformed(f"the resolution must be one of {allowed}; {side} came.")
        return side


def describe(directory: Path, names: Iterable[str]) -> dict[str, File]:
    """Measure the named files of `directory`."""
    return {name: _measure(directory / name) for name in sorted(names)}


def write(manifest: Manifest, directory: Path) -> None:
    """Write `manifest.json`; the same manifest always gives the same bytes."""
    content = asdict(manifest)
    del content["digest"]
    if manifest.collections == "int8":
        del content["collections"]
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
    if type(fields.get("format")) is not int or fields["format"] != FORMAT:
        raise ModelInvalid(
            f"{NAME} has format {_short(fields.get('format'))}; this sidecar reads format "
            f"{FORMAT}. Use the sidecar and the model directory that were released together."
        )
    return _parse(fields, sha256(content).hexdigest())


def _short(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 40 else f"{text[:40]}…"


def _measure(path: Path) -> File:
    with path.open("rb") as stream:
        digest = file_digest(stream, "sha256").hexdigest()
        return File(stream.tell(), digest)


class _Wrong(Exception):
    """What the manifest must not have; the message ends a sentence that begins with NAME."""


def _parse(fields: dict[str, Any], digest: str) -> Manifest:
    try:
        normalisation = _get(fields, "normalisation", dict)
        manifest = Manifest(
            model_id=_text(fields, "model_id"),
            revision=_text(fields, "revision"),
            recipe=_text(fields, "recipe"),
            projection=_text(fields, "projection"),
            graph=_text(fields, "graph"),
            patch_size=_whole(fields, "patch_size"),
            vision_hidden=_whole(fields, "vision_hidden"),
            text_hidden=_whole(fields, "text_hidden"),
            default_resolution=_whole(fields, "default_resolution"),
            resolutions=tuple(
                _whole({"resolutions": side}, "resolutions")
                for side in _get(fields, "resolutions", list)
            ),
            normalisation=Normalisation(
                mean=_triple(normalisation, "mean"),
                std=_triple(normalisation, "std"),
                resample=_text(normalisation, "resample"),
                rescale=_number(normalisation, "rescale"),
            ),
            files={
                name: File(_whole(file, "bytes"), _text(file, "sha256"))
                for name, file in _maps(_get(fields, "files", dict).items(), "files")
            },
            kernels=tuple(
                CustomOpsGraph(_text(entry, "graph"), _texts(entry, "operators"))
                for _, entry in _maps(enumerate(_get(fields, "kernels", list)), "kernels")
            ),
            golden=_text(fields, "golden") if "golden" in fields else "",
            flat=_limits(fields, "flat"),
            collections=_text(fields, "collections") if "collections" in fields else "int8",
            tools={
                name: _text(tools, name)
                for tools in [_get(fields, "tools", dict)]
                for name in tools
            },
            digest=digest,
        )
        _check(manifest)
    except _Wrong as wrong:
        raise ModelInvalid(f"{NAME} {wrong}. {REBUILD}") from wrong
    return manifest


def _check(manifest: Manifest) -> None:
    if len(manifest.files) > MAX_FILES:
        raise _Wrong(f"names more than {MAX_FILES} files")
    for name, file in manifest.files.items():
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
            raise _Wrong(
                "names a file outside the model directory, or with other characters than letters, "
                "digits, dot, dash and underscore"
            )
        if not re.fullmatch(r"[0-9a-f]{64}", file.sha256) or file.bytes < 0:
            raise _Wrong(f"has no proper size and SHA-256 for {name}")
    if manifest.graph not in manifest.files:
        raise _Wrong(f"names the graph {manifest.graph} but not its size")
    beside = {entry.graph for entry in manifest.kernels} | ({manifest.golden} - {""})
    if not beside <= {*manifest.files} or (manifest.kernels and not manifest.golden):
        raise _Wrong("names kernels or a golden record without a size")
    step = GRID * manifest.patch_size
    sides = manifest.resolutions
    if step <= 0 or not sides or any(not 0 < side <= MAX_SIDE or side % step for side in sides):
        raise _Wrong(f"has resolutions that are not multiples of {step} up to {MAX_SIDE}")
    if manifest.default_resolution not in sides:
        raise _Wrong("has a default resolution that it does not allow")
    if min(manifest.vision_hidden, manifest.text_hidden) < 1:
        raise _Wrong("has a hidden size below 1")
    if any(not 0 <= limit <= 1 for limit in manifest.flat.values()):
        raise _Wrong("has a limit for flat images outside 0 to 1")
    if manifest.collections not in ("int8", "int16"):
        raise _Wrong("wants collections in a format that this sidecar does not know")
    how = manifest.normalisation
    if how.resample not in RESAMPLES or not _computable(how):
        raise _Wrong("has a normalisation that cannot be computed")


def _computable(how: Normalisation) -> bool:
    """True if a byte becomes a number of sensible size, in float32 too."""
    return all(
        std != 0 and abs((byte * how.rescale - mean) / std) <= MAX_LEVEL
        for mean, std in zip(how.mean, how.std, strict=True)
        for byte in (0, 255)
    )


def _get(fields: Mapping[str, Any], key: str, kind: type) -> Any:
    if key not in fields:
        raise _Wrong(f"lacks the key {key}")
    value = fields[key]
    if type(value) is not kind:  # a bool is no int here, though Python says so
        raise _Wrong(f"has a value of the wrong type for {key}: expected {_JSON[kind]}")
    return value


def _text(fields: Mapping[str, Any], key: str) -> str:
    value: str = _get(fields, key, str)
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can write half of a surrogate pair; msgpack cannot
        raise _Wrong(f"has text that is not Unicode for {key}") from error
    return value


def _texts(fields: Mapping[str, Any], key: str) -> tuple[str, ...]:
    return tuple(_text({key: value}, key) for value in _get(fields, key, list))


def _whole(fields: Mapping[str, Any], key: str) -> int:
    value: int = _get(fields, key, int)
    if abs(value) > MAX_WHOLE:
        raise _Wrong(f"has a number beyond reason for {key}")
    return value


def _number(fields: Mapping[str, Any], key: str) -> float:
    value = fields.get(key)
    number = _whole(fields, key) if type(value) is int else _get(fields, key, float)
    if not math.isfinite(number):
        raise _Wrong(f"has a number that is not finite for {key}")
    return float(number)


def _triple(fields: Mapping[str, Any], key: str) -> tuple[float, float, float]:
    values = _get(fields, key, list)
    if len(values) != 3:
        raise _Wrong(f"has other than three numbers for {key}")
    red, green, blue = (_number({key: value}, key) for value in values)
    return red, green, blue


def _limits(fields: Mapping[str, Any], key: str) -> dict[int, float]:
    """A number by side length; JSON's keys are text. Without the key there are none."""
    limits = _get(fields, key, dict) if key in fields else {}
    if not all(re.fullmatch(r"[1-9][0-9]{0,9}", side) for side in limits):
        raise _Wrong(f"has a key that is no side length for {key}")
    return {int(side): _number(limits, side) for side in limits}


def _maps(pairs: Iterable[tuple[Any, Any]], key: str) -> Iterator[tuple[Any, dict[str, Any]]]:
    for name, value in pairs:
        yield name, _get({key: value}, key, dict)
