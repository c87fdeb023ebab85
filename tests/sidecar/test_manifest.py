"""A model directory that is not as it was built is refused, with the file named."""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar import manifest, model_files
from sidecar.errors import ModelInvalid, ResourcesExhausted
from sidecar.manifest import CustomOpsGraph, Manifest, Normalisation
from tests import stand_in
from tests.sidecar import messages

GRAPH = "vision_encoder_quant.onnx"
OTHER = "a" * 64


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return stand_in.make(tmp_path / "model")


def change(directory: Path, **fields: Any) -> None:
    path = directory / manifest.NAME
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | fields), "utf-8")


def rename_to(name: str) -> Callable[[Path], None]:
    def apply(directory: Path) -> None:
        files = json.loads((directory / manifest.NAME).read_text("utf-8"))["files"]
        change(directory, files=files | {name: files[GRAPH]})

    return apply


def one_byte(directory: Path) -> None:
    data = bytearray((directory / GRAPH).read_bytes())
    data[len(data) // 2] ^= 1
    (directory / GRAPH).write_bytes(data)


def link(directory: Path) -> None:
    moved = directory.parent / "elsewhere.onnx"
    (directory / GRAPH).rename(moved)
    (directory / GRAPH).symlink_to(moved)


def link_manifest(directory: Path) -> None:
    moved = directory.parent / "elsewhere.json"
    (directory / manifest.NAME).rename(moved)
    (directory / manifest.NAME).symlink_to(moved)


def pipe(directory: Path) -> None:
    (directory / GRAPH).unlink()
    os.mkfifo(directory / GRAPH)


def pipe_manifest(directory: Path) -> None:
    (directory / manifest.NAME).unlink()
    os.mkfifo(directory / manifest.NAME)


def folder(directory: Path) -> None:
    (directory / GRAPH).unlink()
    (directory / GRAPH).mkdir()


def text(content: str) -> Callable[[Path], object]:
    return lambda directory: (directory / manifest.NAME).write_text(content, "utf-8")


HOW = {"mean": [0] * 3, "std": [1] * 3, "resample": "bilinear", "rescale": 1 / 255}

WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "one byte changed": (one_byte, f"{GRAPH} has changed"),
    "a file is missing": (lambda d: (d / GRAPH).unlink(), f"{GRAPH} is missing"),
    "a file is longer": (lambda d: (d / GRAPH).write_bytes(b"x" * 10**6), f"{GRAPH} has 1000000"),
    "a file is a link": (link, f"{GRAPH} is a link"),
    "a file is a pipe": (pipe, f"{GRAPH} is no file"),
    "a file is a directory": (
        folder,
        f"{GRAPH} is no file",
    ),
    "the manifest is a link": (link_manifest, "link"),
    "the manifest is a pipe": (pipe_manifest, "no file"),
    "the manifest is missing": (lambda d: (d / manifest.NAME).unlink(), "found none"),
    "there is no directory": (shutil.rmtree, "found none"),
    "a path leads out": (rename_to("../elsewhere.onnx"), "outside"),
    "a path is absolute": (rename_to("/etc/passwd"), "outside"),
    "a path is Windows's": (rename_to("..\\elsewhere.onnx"), "outside"),
    "a name has a drive": (rename_to("C:model.onnx"), "outside"),
    "a name has a zero byte": (rename_to("model\0.onnx"), "outside"),
    "a name is empty": (rename_to(""), "outside"),
    "a newer format": (lambda d: change(d, format=2), "format 2"),
    "no format": (lambda d: change(d, format=None), "format None"),
    "not JSON": (text("{"), "not JSON"),
    "not an object": (text("[1]"), "not a JSON object"),
    "nested beyond reason": (text("[" * 100_000), "not JSON"),
    "larger than a manifest is": (text(" " * 2**21), "larger"),
    "a key is missing": (text('{"format": 1}'), "lacks the key"),
    "infinity": (lambda d: change(d, patch_size=float("inf")), "wrong type"),
    "files are a list": (lambda d: change(d, files=[]), "wrong type"),
    "the graph is not among the files": (lambda d: change(d, graph="other.onnx"), "other.onnx"),
    "a hash is none": (
        lambda d: change(d, files={GRAPH: {"bytes": 1, "sha256": "x"}}),
        "SHA-256 for",
    ),
    "a size below zero": (
        lambda d: change(d, files={GRAPH: {"bytes": -1, "sha256": OTHER}}),
        "SHA-256 for",
    ),
    "an odd resolution": (lambda d: change(d, resolutions=[225]), "multiples of 224"),
    "no resolution": (lambda d: change(d, resolutions=[]), "multiples of 224"),
    "another default": (lambda d: change(d, default_resolution=896), "default resolution"),
    "a hidden size of zero": (lambda d: change(d, text_hidden=0), "hidden size"),
    "an unknown resampling": (
        lambda d: change(
            d, normalisation={"mean": [0] * 3, "std": [1] * 3, "resample": "x", "rescale": 1}
        ),
        "normalisation",
    ),
    "a format that is true": (lambda d: change(d, format=True), "format True"),
    "a format that is 1.0": (lambda d: change(d, format=1.0), "format 1.0"),
    "a number in text": (lambda d: change(d, patch_size="14"), "wrong type for patch_size"),
    "a number that is true": (lambda d: change(d, text_hidden=True), "wrong type for text_hidden"),
    "a number with a fraction": (lambda d: change(d, patch_size=14.0), "wrong type for patch_size"),
    "text that is a number": (lambda d: change(d, model_id=5), "wrong type for model_id"),
    "half a surrogate pair": (lambda d: change(d, model_id="\ud800"), "not Unicode for model_id"),
    "a side beyond reason": (
        lambda d: change(d, resolutions=[224 * 10**9], default_resolution=224 * 10**9),
        "multiples of 224 up to",
    ),
    "a side of zero": (
        lambda d: change(d, resolutions=[0, 224], default_resolution=224),
        "multiples of 224",
    ),
    "a patch of zero": (lambda d: change(d, patch_size=0), "multiples of 0"),
    "a number of 400 digits": (lambda d: change(d, text_hidden=10**400), "beyond reason"),
    "kernels without a golden record": (
        lambda d: change(d, kernels=[{"graph": GRAPH, "operators": ["Attention"]}]),
        "golden record",
    ),
    "a golden record that is not listed": (lambda d: change(d, golden="g.npz"), "golden record"),
    "more files than a model has": (
        lambda d: change(d, files={f"f{i}": {"bytes": 1, "sha256": OTHER} for i in range(65)}),
        "more than 64 files",
    ),
    "a hidden size in text": (
        lambda d: change(d, vision_hidden="1152"),
        "wrong type for vision_hidden",
    ),
    "means that are two": (
        lambda d: change(d, normalisation=HOW | {"mean": [0, 0]}),
        "three numbers for mean",
    ),
    "a mean that is text": (
        lambda d: change(d, normalisation=HOW | {"mean": [0, 0, "0"]}),
        "wrong type for mean",
    ),
    "a scale that is not finite": (
        lambda d: change(d, normalisation=HOW | {"rescale": float("nan")}),
        "not finite for rescale",
    ),
    "a deviation near zero": (
        lambda d: change(d, normalisation=HOW | {"std": [1, 1, 1e-320]}),
        "cannot be computed",
    ),
    "a limit for flat images above one": (lambda d: change(d, flat={"224": 1.1}), "flat images"),
    "a limit for flat images below zero": (lambda d: change(d, flat={"224": -1}), "flat images"),
    "a limit for flat images at no side": (lambda d: change(d, flat={"x": 1}), "no side length"),
    "a limit for flat images in text": (lambda d: change(d, flat={"224": "1"}), "for 224"),
    "collections in a format of tomorrow": (
        lambda d: change(d, collections="int4"),
        "does not know",
    ),
    "a level beyond reason": (
        lambda d: change(d, normalisation=HOW | {"mean": [0, 1e9, 0]}),
        "cannot be computed",
    ),
    "a patch below zero": (lambda d: change(d, patch_size=-14), "multiples of -224"),
    "a deviation of zero": (
        lambda d: change(
            d,
            normalisation={"mean": [0] * 3, "std": [1, 0, 1], "resample": "bicubic", "rescale": 1},
        ),
        "normalisation",
    ),
}


@pytest.mark.parametrize(("spoil", "says"), WRONG.values(), ids=WRONG)
def test_it_is_refused_where(spoil: Callable[[Path], object], says: str, directory: Path) -> None:
    spoil(directory)
    with pytest.raises(ModelInvalid, match=says):
        model_files.load(directory)


def test_what_is_said_of_each_was_reviewed(tmp_path: Path) -> None:
    said = {}
    for number, (name, (spoil, _)) in enumerate(WRONG.items()):
        made = stand_in.make(tmp_path / str(number))
        spoil(made)
        with pytest.raises(ModelInvalid) as refused:
            model_files.load(made)
        # The graph's own size and hash differ between versions of onnx.
        said[name] = re.sub(r"[0-9a-f]{12}|(?<=says )[0-9]+", "…", str(refused.value))
    messages.check("manifest", said)


JUST_WITHIN: dict[str, dict[str, Any]] = {
    "the largest side": {"patch_size": 64, "resolutions": [16_384], "default_resolution": 16_384},
    "64 files": {"files": 64},
    "hidden sizes of one": {"vision_hidden": 1, "text_hidden": 1},
    "the largest whole number": {"vision_hidden": 2**53},
    "whole numbers where floats are meant": {
        "normalisation": HOW | {"mean": [0, 1, 0], "std": [1, 2, -1], "rescale": 1}
    },
    "levels of a million": {"normalisation": HOW | {"mean": [0, 1e6, 0], "rescale": 1}},
    "no golden record": {"golden": ""},
    "limits for flat images": {"flat": {"224": 0, "448": 1}},
    "no limits for flat images": {"flat": {}},
    "collections in 16 bits": {"collections": "int16"},
    "tools": {"tools": {"onnxruntime": "1.32.0"}},
}


def content(directory: Path, **changes: Any) -> dict[str, Any]:
    """The manifest's fields; `files` may be a number of them."""
    fields: dict[str, Any] = json.loads((directory / manifest.NAME).read_text("utf-8"))
    if isinstance(changes.get("files"), int):
        names = [f"F{i}_a-b.C" for i in range(changes.pop("files") - 1)]
        more = {name: {"bytes": 0, "sha256": OTHER} for name in names}
        changes["files"] = fields["files"] | more
    return fields | changes


@pytest.mark.parametrize("changes", JUST_WITHIN.values(), ids=JUST_WITHIN)
def test_what_is_just_within_the_limits_is_read(changes: dict[str, Any], directory: Path) -> None:
    change(directory, **content(directory, **changes))
    described = manifest.read(directory)
    for name, value in changes.items():
        if name in ("patch_size", "vision_hidden", "text_hidden", "default_resolution", "tools"):
            assert getattr(described, name) == value


def test_every_field_is_read_as_it_stands(directory: Path) -> None:
    change(
        directory,
        model_id="m",
        revision="r",
        recipe="c",
        projection="p",
        patch_size=7,
        vision_hidden=11,
        text_hidden=13,
        resolutions=[224, 112],
        default_resolution=112,
        normalisation={
            "mean": [0.1, 0.2, 0.3],
            "std": [0.4, 0.5, 0.6],
            "resample": "lanczos",
            "rescale": 0.5,
        },
        kernels=[{"graph": GRAPH, "operators": ["A", "B"]}],
        golden=GRAPH,
        flat={"112": 0.25},
        tools={"a": "1"},
    )
    described = manifest.read(directory)
    text = (directory / manifest.NAME).read_bytes()
    file = manifest.describe(directory, [GRAPH])[GRAPH]
    assert described == Manifest(
        model_id="m",
        revision="r",
        recipe="c",
        projection="p",
        graph=GRAPH,
        patch_size=7,
        vision_hidden=11,
        text_hidden=13,
        default_resolution=112,
        resolutions=(224, 112),
        normalisation=Normalisation((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "lanczos", 0.5),
        files={GRAPH: file},
        tools={"a": "1"},
        kernels=(CustomOpsGraph(GRAPH, ("A", "B")),),
        golden=GRAPH,
        flat={112: 0.25},
        digest=hashlib.sha256(text).hexdigest(),
    )
    data = (directory / GRAPH).read_bytes()
    assert (file.bytes, file.sha256) == (len(data), hashlib.sha256(data).hexdigest())


def test_a_manifest_is_written_in_one_way(directory: Path, tmp_path: Path) -> None:
    manifest.write(manifest.read(directory), tmp_path)
    text = (tmp_path / manifest.NAME).read_text("utf-8")
    fields = json.loads(text)
    assert text == json.dumps(fields, indent=2, sort_keys=True) + "\n"
    assert "digest" not in fields
    assert text == (directory / manifest.NAME).read_text("utf-8")


@pytest.mark.parametrize("length", [38, 39])
def test_a_format_is_cut_short_where_it_is_repeated(length: int, directory: Path) -> None:
    change(directory, format="x" * length)
    said = f"'{'x' * 38}'" if length == 38 else f"'{'x' * 39}…"
    with pytest.raises(ModelInvalid, match=f"has format {said};"):
        manifest.read(directory)


@pytest.mark.parametrize("size", [2**20, 2**20 + 1])
def test_a_manifest_of_1_mib_is_read_and_a_longer_one_is_not(size: int, directory: Path) -> None:
    path = directory / manifest.NAME
    text = path.read_text("utf-8")
    path.write_text(text + " " * (size - len(text)), "utf-8")
    if size == 2**20:
        manifest.read(directory)
    else:
        with pytest.raises(ModelInvalid, match="larger than 1048576 bytes"):
            manifest.read(directory)


def test_a_manifest_that_cannot_be_read_is_named_with_the_reason(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(
        ModelInvalid, match=r"manifest\.json cannot be read: Permission denied\. Bu"
    ):
        manifest.read(directory)


def test_a_shortage_of_descriptors_is_no_fault_of_the_manifest(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(ResourcesExhausted):
        manifest.read(directory)


def test_what_was_written_is_read(directory: Path) -> None:
    described = model_files.load(directory)
    manifest.write(described, directory)
    assert model_files.load(directory) == described
    assert len(described.digest) == 64


def test_a_link_to_the_whole_directory_is_fine(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(directory)
    assert model_files.load(tmp_path / "current") == model_files.load(directory)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=8), values),
    max_leaves=8,
)
KEYS = [
    "model_id",
    "graph",
    "patch_size",
    "text_hidden",
    "default_resolution",
    "resolutions",
    "normalisation",
    "files",
    "tools",
]


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(KEYS), JSON)
def test_any_value_for_any_key_is_read_or_refused(key: str, value: Any) -> None:
    content = {
        "format": 1,
        "model_id": "x",
        "revision": "1",
        "recipe": "default",
        "projection": "linear",
        "graph": GRAPH,
        "patch_size": 14,
        "vision_hidden": 3,
        "text_hidden": 8,
        "default_resolution": 224,
        "resolutions": [224],
        "normalisation": {"mean": [0] * 3, "std": [1] * 3, "resample": "bilinear", "rescale": 1},
        "files": {GRAPH: {"bytes": 1, "sha256": OTHER}},
        "tools": {},
    }
    with contextlib.suppress(ModelInvalid):
        manifest._parse(content | {key: value}, OTHER)
