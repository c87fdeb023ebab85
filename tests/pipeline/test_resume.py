import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from build.checkpoint import Checkpoint
from build.recipes import RECIPES, Choice
from build.validate import REPORT
from tests import tiny

STEPS = [Checkpoint.__name__, *(type(step).__name__ for step in RECIPES["float"](Choice()))]

# Builds once for every step named, in a fork that SIGKILL ends while the step is writing; then once
# more, to the end. Forks, because importing torch takes longer than the rest.
DRIVER = """
import os, signal, sys
from build import __main__ as cli
from build.checkpoint import Checkpoint
from build.recipes import RECIPES, Choice

steps = {type(step).__name__: type(step) for step in RECIPES["float"](Choice())}
steps["Checkpoint"] = Checkpoint

def die(step, source, out):
    out.mkdir(parents=True, exist_ok=True)
    (out / "half-written").write_bytes(b"x" * 1000)
    os.kill(os.getpid(), signal.SIGKILL)

for name in [*sys.argv[1].split(), None]:
    sys.stdout.flush()
    child = os.fork()
    if not child:
        if name == "place":  # where the finished model is copied to --out
            cli.shutil.copytree = lambda source, out, **rest: die(None, source, out)
        elif name:
            steps[name].__call__ = die
        code = cli.main(sys.argv[2:])
        sys.stdout.flush()
        os._exit(code)
    _, status = os.waitpid(child, 0)
    print("ended", name, os.waitstatus_to_exitcode(status), os.path.exists(sys.argv[4]))
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.checkpoint(tmp_path_factory.mktemp("tiny") / "model")


def build(source: Path, place: Path, killed_in: list[str]) -> list[str]:
    """Build `place`/out; the lines that were printed."""
    arguments = [str(source), "--out", str(place / "out"), "--work", str(place / "work")]
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            DRIVER,
            " ".join(killed_in),
            *arguments,
            "--no-bars",
            "--recipe",
            "float",
        ],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path.cwd())},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
def test_a_build_killed_in_every_step_goes_on_to_the_very_same_model(
    source: Path, tmp_path: Path
) -> None:
    lines = build(source, tmp_path / "killed", [*STEPS, "place"])
    for name in STEPS:
        assert f"ended {name} {-signal.SIGKILL} False" in lines  # and there is no --out yet
        # The step was begun twice, killed and whole, and then taken as it is.
        assert lines.count(f"{name.lower()} …") == 2
        assert sum(line.startswith(f"{name.lower()}: unchanged") for line in lines) == (
            len(STEPS) - STEPS.index(name)
        )
    assert f"ended place {-signal.SIGKILL} False" in lines
    build(source, tmp_path / "whole", [])
    killed, whole = (contents(tmp_path / name / "out") for name in ("killed", "whole"))
    assert killed == whole
    assert {path.name for path in (tmp_path / "killed").iterdir()} == {"out", "work"}
    assert not list((tmp_path / "killed" / "work").iterdir())


def contents(directory: Path) -> dict[str, object]:
    """Every file of a model directory; of the report, what does not depend on the time it took."""
    found: dict[str, object] = {
        path.name: path.read_bytes() for path in directory.iterdir() if path.name != REPORT
    }
    report = json.loads((directory / REPORT).read_text())
    del report["seconds"]
    return found | {REPORT: report}
