"""The chain of steps: what is run again, what a crash leaves, what a change of code rebuilds."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from build import pipeline
from build.artifacts import Artifact, BuildError, Inputs, Step
from build.checkpoint import Checkpoint
from build.recipes import RECIPES, Choice

ROOT = pipeline.ROOT
RAN: list[str] = []


@dataclass(frozen=True)
class Start:
    """Writes a text that others go on from."""

    text: str

    reads: ClassVar = ()
    writes: ClassVar = Artifact.CHECKPOINT

    def __call__(self, _: Inputs, out: Path) -> None:
        RAN.append(self.text)
        (out / "text").write_text(self.text)


@dataclass(frozen=True)
class Append:
    text: str
    reads: tuple[Artifact, ...] = (Artifact.CHECKPOINT,)
    writes: Artifact = Artifact.PLAN

    def __call__(self, inputs: Inputs, out: Path) -> None:
        RAN.append(self.text)
        before = "".join((inputs[artifact] / "text").read_text() for artifact in self.reads)
        (out / "text").write_text(before + self.text)


@dataclass(frozen=True)
class Crash:
    reads: ClassVar = (Artifact.CHECKPOINT,)
    writes: ClassVar = Artifact.PLAN

    def __call__(self, _: Inputs, out: Path) -> None:
        (out / "text").write_text("half")
        raise RuntimeError("the power went")


FLOAT = Append("f", writes=Artifact.FLOAT_GRAPH)
BOTH = (Artifact.FLOAT_GRAPH, Artifact.PLAN)


def run(steps: Sequence[Step], work: Path) -> str:
    """What the last step wrote; RAN has what was run for it."""
    RAN.clear()
    made = pipeline.run(steps, work / "cache", lambda _: None)
    return (made[steps[-1].writes] / "text").read_text()


def test_a_step_reads_what_others_wrote_where_it_lies(tmp_path: Path) -> None:
    assert run([Start("1"), Append("p"), FLOAT, Append("!", BOTH, Artifact.REPORT)], tmp_path) == (
        "1f1p!"
    )
    assert len(list((tmp_path / "cache").rglob("text"))) == 4  # nothing was copied


def test_changing_one_step_runs_only_what_reads_it(tmp_path: Path) -> None:
    last = Append("!", BOTH, Artifact.REPORT)
    run([Start("1"), Append("p"), FLOAT, last], tmp_path)
    assert run([Start("1"), Append("q"), FLOAT, last], tmp_path) == "1f1q!"
    assert RAN == ["q", "!"]


def test_changing_an_early_step_runs_the_later_ones_again(tmp_path: Path) -> None:
    run([Start("1"), Append("2")], tmp_path)
    assert run([Start("0"), Append("2")], tmp_path) == "02"
    assert RAN == ["0", "2"]


def test_a_change_of_tools_reuses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run([Start("1")], tmp_path)
    monkeypatch.setattr(pipeline, "version", lambda _: "another one")
    run([Start("1")], tmp_path)
    assert RAN == ["1"]


def test_a_crash_leaves_no_output_and_the_next_run_goes_on_from_there(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        run([Start("1"), Crash()], tmp_path)
    assert [path.name.partition("-")[0] for path in (tmp_path / "cache").iterdir()] == ["start"]
    assert run([Start("1"), Append("2")], tmp_path) == "12"
    assert RAN == ["2"]


def test_clean_leaves_nothing_of_the_chain(tmp_path: Path) -> None:
    steps: list[Step] = [Start("1"), Append("2")]
    run(steps, tmp_path)
    pipeline.clean(steps, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_it_is_known_how_long_each_step_took(tmp_path: Path) -> None:
    steps: list[Step] = [Start("1"), Append("2")]
    run(steps, tmp_path)
    assert pipeline.times(steps, tmp_path / "cache").keys() == {"start", "append"}


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The code of the build and of the sidecar, with a native library, to be changed."""
    root = tmp_path_factory.mktemp("clone")
    for package in ("build", "sidecar"):
        ignored = shutil.ignore_patterns("__pycache__", "*.so", "*.dylib", "*.dll")
        shutil.copytree(ROOT / package, root / package, ignore=ignored)
    (root / "sidecar" / "kernels" / "vision_kernels.so").write_bytes(b"one")
    return root


CHAIN = (Checkpoint("model", "0", Path("model")), *RECIPES["default"](Choice()))
EVERY = {type(step).__name__ for step in CHAIN}


def rebuilt(root: Path, path: str, edit: str) -> set[str]:
    """The steps of the default recipe whose key changes when text is added to a file."""
    pipeline.code.cache_clear()
    before = pipeline.keys(CHAIN, root)
    file = root / path
    content = file.read_bytes()
    file.write_bytes(content + edit.encode())
    try:
        pipeline.code.cache_clear()
        after = pipeline.keys(CHAIN, root)
    finally:
        file.write_bytes(content)
        pipeline.code.cache_clear()
    return {type(step).__name__ for step, a, b in zip(CHAIN, before, after, strict=True) if a != b}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("sidecar/engine.py", {"Golden", "Package"}),  # golden_input, and what vouches for it
        ("sidecar/images.py", EVERY - {"Checkpoint", "Export"}),
        ("sidecar/session.py", {"Golden", "MeasureFlat", "Validate", "Package"}),
        ("sidecar/norms.py", {"MeasureFlat", "Package"}),
        (
            "sidecar/kernels/vision_kernels.so",
            {"Golden", "MeasureFlat", "Validate", "Package"},
        ),
        ("sidecar/manifest.py", EVERY),
        ("sidecar/server.py", set()),
        ("build/metrics.py", {"Validate", "Package"}),
        (
            "build/custom_ops.py",
            {"Quantise", "Golden", "MeasureFlat", "Validate", "Package"},
        ),
        ("build/gptq.py", EVERY - {"Checkpoint", "Export", "Reference"}),
        ("build/views.py", EVERY - {"Checkpoint", "Export", "Reference"}),
        ("build/quantise.py", EVERY - {"Checkpoint", "Calibrate", "Export", "Reference"}),
        ("build/reference_outputs.py", {"Reference", "Validate", "Package"}),
        ("build/report.py", set()),
        ("build/recipes.py", set()),  # it counts by what it configures
    ],
)
def test_a_change_of_code_rebuilds_exactly_the_steps_that_depend_on_it(
    clone: Path, path: str, expected: set[str]
) -> None:
    assert rebuilt(clone, path, "\n") == expected


def test_every_form_of_an_import_is_followed(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    for name, text in {
        "__init__": "",
        "start": "import package.whole\nfrom package import within\nfrom package.named import x",
        "whole": "def later():\n    from . import relative",
        "within": "import json, no_such_module",
        "named": "x = 1",
        "relative": "from .deeper import y",
        "deeper": "y = 2",
        "stranger": "",
    }.items():
        (package / f"{name}.py").write_text(text)
    names = {file.stem for file in pipeline.reachable("package.start", tmp_path)}
    assert names == {"__init__", "start", "whole", "within", "named", "relative", "deeper"}


def test_an_error_of_the_build_is_not_taken_for_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @dataclass(frozen=True)
    class Refuse(Start):
        def __call__(self, _: Inputs, out: Path) -> None:
            raise BuildError("expected another checkpoint.")

    usage = shutil.disk_usage(tmp_path)._replace(free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(BuildError, match="another checkpoint"):
        run([Refuse("1")], tmp_path)
