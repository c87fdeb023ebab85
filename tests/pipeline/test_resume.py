import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from build import pipeline
from build.__main__ import explain, main, place
from build.artifacts import REPORT, REPORT_HTML, Artifact, Inputs
from build.checkpoint import Checkpoint
from build.recipes import RECIPES, Choice
from tests import tiny

STEPS = [Checkpoint.__name__, *(type(step).__name__ for step in RECIPES["default"](Choice()))]

# Builds killed/out once for every name given, in a fork that SIGKILL ends while the step of that
# name is writing; then to the end; then whole/out at one go. Forks, because importing torch takes
# longer than a step.
DRIVER = """
import os, shutil, signal, sys, types
from build import __main__ as cli, pipeline
from build.checkpoint import Checkpoint
from build.recipes import RECIPES, Choice

source, place, *names = sys.argv[1:]
steps = {type(step).__name__: type(step) for step in RECIPES["default"](Choice())}
steps["Checkpoint"] = Checkpoint

def die(*arguments):
    out = arguments[-1]
    (out / "half-written" if out.is_dir() else out).write_bytes(b"x" * 1000)
    os.kill(os.getpid(), signal.SIGKILL)

def build(inside, killed_in=None):
    sys.stdout.flush()
    out, work = f"{place}/{inside}/out", f"{place}/{inside}/work"
    child = os.fork()
    if not child:
        if killed_in == "place":  # where the finished model is copied to --out
            cli.shutil = types.SimpleNamespace(**vars(shutil) | {"copyfile": die})
        elif killed_in:
            steps[killed_in].__call__ = die
        code = cli.main([source, "--out", out, "--work", work, "--no-bars", "--images", "2"])
        sys.stdout.flush()
        os._exit(code)
    _, status = os.waitpid(child, 0)
    print("ended", killed_in, os.waitstatus_to_exitcode(status), os.path.exists(out))

pipeline.keys([Checkpoint("", "", ""), *RECIPES["default"](Choice())])  # caches the code's hashes
for name in names:
    build("killed", name)
build("killed")
print("---")
build("whole")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
def test_a_build_killed_in_every_step_goes_on_to_the_very_same_model(tmp_path: Path) -> None:
    source = tiny.checkpoint(tmp_path / "model")
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, source, tmp_path, *STEPS, "place"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path.cwd())},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.partition("---")[0].splitlines()
    for name in STEPS:
        assert f"ended {name} {-signal.SIGKILL} False" in lines  # and there is no --out yet
        # The step was begun twice, killed and whole, and from then on taken as it is.
        assert lines.count(f"{name.lower()} …") == 2
        assert sum(line.startswith(f"{name.lower()}: unchanged") for line in lines) == (
            len(STEPS) - STEPS.index(name)
        )
    assert f"ended place {-signal.SIGKILL} False" in lines
    assert "ended None 0 True" in lines
    assert contents(tmp_path / "killed" / "out") == contents(tmp_path / "whole" / "out")
    assert {path.name for path in (tmp_path / "killed").iterdir()} == {"out", "work"}
    assert not list((tmp_path / "killed" / "work").iterdir())


def contents(directory: Path) -> dict[str, object]:
    """Every file of a model directory; of the report, what does not depend on the time it took."""
    found: dict[str, object] = {
        path.name: path.read_bytes()
        for path in directory.iterdir()
        if path.name not in (REPORT, REPORT_HTML)
    }
    report = json.loads((directory / REPORT).read_text())
    del report["seconds"]
    return found | {REPORT: report}


def test_a_build_that_fails_leaves_no_half_written_files(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Fill:
        reads: ClassVar = ()
        writes: ClassVar = Artifact.PLAN

        def __call__(self, _: Inputs, out: Path) -> None:
            (out / "half-written").write_bytes(b"x" * 1000)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match="No space"):
        pipeline.run([Fill()], tmp_path / "work", lambda _: None)
    assert not list((tmp_path / "work").iterdir())


def test_a_place_where_no_model_can_be_put_is_told_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    assert main(["nowhere", "--out", str(tmp_path / "file" / "out")]) == 1
    assert "file" in capsys.readouterr().err
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert main(["nowhere", "--out", str(tmp_path / "new" / "out")]) == 1
    assert "expected to write into" in capsys.readouterr().err


@dataclass(frozen=True)
class Vague:
    """As numpy's tofile, which names no errno."""

    reads: ClassVar = ()
    writes: ClassVar = Artifact.PLAN

    def __call__(self, _: Inputs, out: Path) -> None:
        raise OSError("100000 requested and 16384 written")


def test_a_disk_that_fills_is_named_though_the_library_that_wrote_does_not_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OSError, match="requested"):
        pipeline.run([Vague()], tmp_path / "work", lambda _: None)
    usage = shutil.disk_usage(tmp_path)._replace(free=4096)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match="No space"):
        pipeline.run([Vague()], tmp_path / "work", lambda _: None)


def test_a_disk_that_fills_under_the_model_directory_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Path, target: Path) -> None:
        target.write_bytes(b"x" * 1000)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    made = tiny.build(tmp_path / "made", "float")
    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(OSError, match="No space") as caught:
        place({Artifact.MANIFEST: made}, tmp_path / "out", {})
    assert "the disk is full. Make room" in explain(caught.value, tmp_path)
    assert list(tmp_path.iterdir()) == [made]
