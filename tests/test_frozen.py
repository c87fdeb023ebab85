"""The frozen program is the module over again, on machines that have less than this one.

Run with VISION_SIDECAR naming the program, as `make test BUNDLE=dist/vision-sidecar` does; the
whole behavioural suite runs against it then, and this file adds what only a bundle can get wrong.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sidecar import manifest
from tests import stand_in
from tests.client import StdioClient, ZmqClient

ROOT = Path(__file__).resolve().parents[1]
FREEZE_PYTHON = ROOT / ".work" / "freeze-venv" / "bin" / "python"
PAGE = ROOT / "examples" / "ecg.png"
PROGRAM = os.environ.get("VISION_SIDECAR")
NOBODY = 65534
MODULE = [sys.executable, "-m", "sidecar"]

pytestmark = pytest.mark.skipif(not PROGRAM, reason="VISION_SIDECAR names no frozen program")
posix = pytest.mark.skipif(os.name != "posix", reason="POSIX permissions and renames")


@pytest.fixture(scope="module")
def program() -> Path:
    assert PROGRAM is not None
    return Path(PROGRAM).resolve()


@pytest.fixture
def installed(program: Path) -> Iterator[Path]:
    """The app folder as an installer leaves it: awkwardly named, and nobody's to write to."""
    with tempfile.TemporaryDirectory() as above:
        app = Path(above) / "Herz & Röntgen 心電図"
        shutil.copytree(program.parent, app / "vision-sidecar", symlinks=True)
        stand_in.make(app / "vision-model")
        shutil.copy(PAGE, app / "page.png")
        folders = [Path(above), *(path for path in Path(above).rglob("*") if path.is_dir())]
        files = [path for path in app.rglob("*") if path.is_file() and not path.is_symlink()]
        for path in [*files, *folders]:
            path.chmod(0o555 if path.is_dir() or path.stat().st_mode & stat.S_IXUSR else 0o444)
        yield app
        for folder in folders:
            folder.chmod(0o755)


def run(*command: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        **options,
    )


def test_it_holds_nothing_of_the_build_and_no_path_of_this_machine(program: Path) -> None:
    if not FREEZE_PYTHON.exists():
        pytest.skip("the bundle was frozen elsewhere")
    checked = run(FREEZE_PYTHON, ROOT / "packaging" / "contents.py", program.parent)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_no_file_in_it_is_named_for_torch(program: Path) -> None:
    names = [path.name.lower() for path in program.parent.rglob("*")]
    assert len(names) > 50
    assert [name for name in names if "torch" in name or "transformers" in name] == []


@pytest.mark.parametrize(
    "name", ["Python", "pyinstaller", "numpy", "onnxruntime", "pillow", "pyzmq"]
)
def test_it_carries_the_terms_of(name: str, program: Path) -> None:
    terms = (program.parent / "THIRD_PARTY_LICENSES.txt").read_text("utf-8")
    contents = terms[: terms.index("=====")]
    assert f"- {name} " in contents


def test_it_carries_the_terms_of_what_is_compiled_into_the_kernels(program: Path) -> None:
    terms = (program.parent / "THIRD_PARTY_LICENSES.txt").read_text("utf-8")
    compiled_in = ["Highway"] + ["GCC's runtime libraries"] * (sys.platform == "linux")
    frozen = any(program.parent.glob("_internal/sidecar/kernels/vision_kernels.*"))
    for name in compiled_in:
        assert (f"- {name}, inside vision_kernels: " in terms) == frozen


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model directory from the build pipeline, with a graph for the kernels."""
    directory = tmp_path_factory.mktemp("models") / "tiny"
    made = run(sys.executable, "-m", "tests.tiny", directory, cwd=ROOT)
    assert made.returncode == 0, made.stderr
    return directory


def test_it_encodes_a_page_exactly_as_the_module_does(
    program: Path, built: Path, tmp_path: Path
) -> None:
    commands: dict[str, list[str | Path]] = {"frozen": [program], "module": [*MODULE]}
    for out, command in commands.items():
        done = run(*command, "encode", PAGE, "--model", built, "--out", tmp_path / out, cwd=ROOT)
        assert done.returncode == 0, done.stderr
    frozen, module = (np.load(tmp_path / out / "ecg.npz") for out in ("frozen", "module"))
    assert sorted(frozen) == sorted(module)
    assert len(frozen)
    for name in frozen:
        np.testing.assert_array_equal(frozen[name], module[name])
    assert (tmp_path / "frozen" / "ecg.heatmap.png").stat().st_size > 0


def test_it_uses_its_kernels_where_the_module_does(program: Path, built: Path) -> None:
    kernels = []
    for command in ([program], MODULE):
        verified = run(*command, "verify", "--model", built, cwd=ROOT)
        assert verified.returncode == 0, verified.stderr
        kernels += [line for line in verified.stdout.splitlines() if line.startswith("kernels ")]
    assert len(kernels) == 2
    assert kernels[0] == kernels[1]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a signature changes the file")
def test_its_kernels_are_those_that_were_built_here(program: Path) -> None:
    built = ROOT / "sidecar" / "kernels" / "vision_kernels.so"
    if not built.exists():
        pytest.skip("no kernels were built here")
    frozen = program.parent / "_internal" / "sidecar" / "kernels" / built.name
    assert frozen.read_bytes() == built.read_bytes(), "freeze again: the kernels have changed"


@posix
def test_it_runs_for_a_user_without_home_or_rights_from_a_folder_no_one_may_write(
    installed: Path,
) -> None:
    before = sorted(installed.rglob("*"))
    user: dict[str, Any] = {"env": {"HOME": "/nonexistent"}, "cwd": "/"}
    if os.getuid() == 0:
        user |= {"user": NOBODY, "group": NOBODY, "extra_groups": []}
    with tempfile.TemporaryDirectory() as out:
        Path(out).chmod(0o777)
        given = ("--model", installed / "vision-model", "--out", Path(out) / "here")
        program = installed / "vision-sidecar" / "vision-sidecar"
        done = run(program, "encode", installed / "page.png", *given, **user)
        assert done.returncode == 0, done.stderr
        assert {path.name for path in Path(out).rglob("*.*")} == {"page.npz", "page.heatmap.png"}
    assert sorted(installed.rglob("*")) == before


def test_a_model_directory_of_a_newer_format_is_refused_in_one_sentence(
    program: Path, tmp_path: Path
) -> None:
    model = stand_in.make(tmp_path / "model")
    manifest = json.loads((model / "manifest.json").read_text("utf-8"))
    manifest["format"] += 1
    (model / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    refused = run(program, "verify", "--model", model)
    assert refused.returncode != 0
    assert refused.stderr.startswith("model.invalid: ")
    assert f"format {manifest['format']}" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def test_two_versions_of_an_app_run_side_by_side(
    program: Path, model: Path, built: Path, tmp_path: Path
) -> None:
    models = [model, built]
    programs = [copy_of(program, tmp_path / version) for version in ("1", "2")]
    with (
        ZmqClient(models[0], executable=programs[0]) as old,
        ZmqClient(models[1], executable=programs[1]) as new,
    ):
        replies = [sidecar.ask("encode", {"image": picture("PNG")}) for sidecar in (old, new)]
        assert [reply.header["model"] for reply in replies] == [
            manifest.read(model).digest for model in models
        ]
        old.close()
        assert new.ask("encode", {"image": picture("PNG")}).ok


@posix
def test_an_update_replaces_a_sidecar_that_is_running(
    program: Path, model: Path, tmp_path: Path
) -> None:
    app = tmp_path / "app"
    installed = copy_of(program, app)
    with StdioClient(model, executable=installed) as old:
        assert old.ask("hello").ok
        shutil.rmtree(app)  # the old version is gone, and the new one is not whole yet
        for path in program.parent.rglob("*"):
            if path.is_file():
                file = installed.parent / path.relative_to(program.parent)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(b"half unpacked")
        for kind in ("PNG", "JPEG", "WEBP"):
            params = {"outputs": ["pooled_embedding", "heatmap_png"], "heatmap": {}}
            reply = old.ask("encode", {"image": picture(kind)}, params)
            assert reply.ok, (kind, reply.message)
            assert set(reply.arrays) == {"pooled_embedding", "heatmap_png"}
        shutil.rmtree(app)
        copy_of(program, app)
        with StdioClient(model, executable=installed) as new:
            assert new.ask("encode", {"image": picture("PNG")}).ok
        assert old.ask("encode", {"image": picture("PNG")}).ok


def copy_of(program: Path, app: Path) -> Path:
    """The bundle as an installer puts it into `app`; its program there."""
    shutil.copytree(program.parent, app / "vision-sidecar", symlinks=True)
    return app / "vision-sidecar" / program.name


def picture(kind: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 30), (200, 20, 20)).save(file, kind)
    return file.getvalue()
