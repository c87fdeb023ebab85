"""The wheel that Python users install: its tag is true, and it encodes, with kernels, by itself."""

import os
import re
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.client import ROOT

pytestmark = pytest.mark.slow

PAGE = ROOT / "examples" / "ecg.png"
USE = """
import sys
from sidecar.vision_encoder import VisionEncoder

with VisionEncoder(sys.argv[1], threads=1) as encoder:
    print(encoder.kernels)
    print(encoder.encode(sys.argv[2]).attention_scores.shape)
"""


def run(*words: str | Path, cwd: Path) -> str:
    done = subprocess.run(
        [str(word) for word in words], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", directory, ROOT, cwd=ROOT)
    (file,) = directory.glob("*.whl")
    return file


def test_its_tag_is_what_auditwheel_finds(wheel: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("auditwheel knows Linux")
    shown = run(sys.executable, "-m", "auditwheel", "show", wheel, cwd=ROOT)
    tag = re.search(r'platform tag: "(\w+)"', shown.replace("\n", " "))
    assert tag is not None
    assert wheel.stem.endswith(f"-{tag[1]}"), shown


def test_in_a_fresh_environment_it_runs_as_here_and_with_kernels(
    wheel: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    run(sys.executable, "-m", "tests.tiny", model, cwd=ROOT)
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    run(python, "-m", "pip", "install", wheel, cwd=tmp_path)
    there = run(python, "-c", USE, model, PAGE, cwd=tmp_path)
    assert there == run(sys.executable, "-c", USE, model, PAGE, cwd=ROOT)
    assert there.endswith("(1, 256)\n")
    assert list((tmp_path / "venv").rglob("vision_kernels.*")), "the wheel holds no kernels"
