"""The bytes that are hashed are the bytes that are loaded, or the model is refused."""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from sidecar import encoder, engine, manifest, model_files
from sidecar.errors import ModelInvalid, ResourcesExhausted
from sidecar.model_files import ModelFiles
from sidecar.settings import parse
from tests import stand_in

GRAPH = "vision_encoder_quant.onnx"

posix = pytest.mark.skipif(os.name != "posix", reason="Windows has no time of change")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return stand_in.make(tmp_path / "model")


def replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    other.replace(path)


def replace_and_put_back(path: Path) -> None:
    kept = path.with_name("kept")
    path.rename(kept)
    path.write_bytes(b"another graph")
    kept.replace(path)


def write_in_place(path: Path) -> None:
    with path.open("r+b") as stream:
        byte = stream.read(1)
        stream.seek(0)
        stream.write(byte)


def write_in_place_and_set_back_the_clock(path: Path) -> None:
    status = path.stat()
    write_in_place(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def link(path: Path) -> None:
    path.rename(path.with_name("x"))
    path.symlink_to("x")


CHANGES: dict[str, Callable[[Path], None]] = {
    "replaced": replace,
    "replaced and put back": replace_and_put_back,
    "written to": write_in_place,
    "written to, its time of modification set back": write_in_place_and_set_back_the_clock,
    "removed": Path.unlink,
    "a link now": link,
}


@posix
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_file_that_changes_after_its_hash_was_taken_is_noticed(
    change: Callable[[Path], None], directory: Path
) -> None:
    with ModelFiles(directory, manifest.read(directory)) as files:
        files.check_unchanged()
        change(directory / GRAPH)
        with pytest.raises(ModelInvalid, match=f"{GRAPH} was changed while"):
            files.check_unchanged()


@posix
def test_a_graph_that_is_exchanged_between_hash_and_load_is_not_used(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = stand_in.make(directory.parent / "other", seed=8) / GRAPH
    select = engine.select

    def exchange(*arguments: object) -> object:
        other.replace(directory / GRAPH)
        return select(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(engine, "select", exchange)
    with pytest.raises(ModelInvalid, match=f"{GRAPH} was changed while"):
        encoder.load(manifest.read(directory), parse(["verify", "--model", str(directory)]))


def test_the_content_is_that_of_the_file_that_was_hashed(directory: Path) -> None:
    before = (directory / GRAPH).read_bytes()
    with ModelFiles(directory, manifest.read(directory)) as files:
        if os.name == "posix":
            (directory / GRAPH).unlink()
        with files.content(GRAPH) as content:
            assert bytes(content) == before


def test_an_empty_file_has_no_content(directory: Path) -> None:
    (directory / "empty").touch()
    described = manifest.read(directory)
    listed = {**described.files, **manifest.describe(directory, ["empty"])}
    object.__setattr__(described, "files", listed)
    with ModelFiles(directory, described) as files, files.content("empty") as content:
        assert bytes(content) == b""


def test_no_descriptor_is_left_open(directory: Path) -> None:
    if not Path("/proc/self/fd").exists():
        pytest.skip("needs Linux's /proc")
    model_files.load(directory)
    (directory / GRAPH).write_bytes(b"x" * (directory / GRAPH).stat().st_size)
    with pytest.raises(ModelInvalid):
        model_files.load(directory)
    assert open_files(directory) == []


def open_files(directory: Path) -> list[Path]:
    """Files of `directory` that this process holds open; other tests' descriptors do not count."""
    files = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the descriptor of the listing itself
            files.append(descriptor.readlink())
    return [file for file in files if file.is_relative_to(directory.resolve())]


@posix
def test_a_file_that_is_written_to_without_end_is_refused(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_files, "SETTLED_NS", 10**18)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    with pytest.raises(ModelInvalid, match="being written to"):
        model_files.load(directory)


def test_a_shortage_of_descriptors_is_no_fault_of_the_model(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(ResourcesExhausted, match="file descriptors"):
        model_files.load(directory)
