"""The chain of steps: what is run again, and what a crash leaves."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from build import pipeline

RAN: list[str] = []


@dataclass(frozen=True)
class Append:
    letter: str

    def __call__(self, source: Path, out: Path) -> None:
        RAN.append(self.letter)
        before = (source / "model").read_text() if (source / "model").exists() else ""
        (out / "model").write_text(before + self.letter)


@dataclass(frozen=True)
class Crash:
    def __call__(self, source: Path, out: Path) -> None:
        (out / "model").write_text("half")
        raise RuntimeError("the power went")


def run(steps: list[pipeline.Step], work: Path, salt: str = "") -> Path:
    RAN.clear()
    return pipeline.run(steps, work, work / "cache", salt, lambda _: None)


def test_changing_one_step_runs_only_what_follows_it(tmp_path: Path) -> None:
    run([Append("1"), Append("2")], tmp_path)
    out = run([Append("1"), Append("3")], tmp_path)
    assert (out / "model").read_text() == "13"
    assert RAN == ["3"]


def test_changing_an_early_step_runs_the_later_ones_again(tmp_path: Path) -> None:
    run([Append("1"), Append("2")], tmp_path)
    out = run([Append("0"), Append("2")], tmp_path)
    assert (out / "model").read_text() == "02"


def test_a_change_of_tools_reuses_nothing(tmp_path: Path) -> None:
    run([Append("1")], tmp_path, salt="onnx 1")
    run([Append("1")], tmp_path, salt="onnx 2")
    assert RAN == ["1"]


def test_a_crash_leaves_no_output_and_the_next_run_goes_on_from_there(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        run([Append("1"), Crash()], tmp_path)
    assert not [path for path in (tmp_path / "cache").glob("crash-*") if path.suffix != ".partial"]
    out = run([Append("1"), Append("2")], tmp_path)
    assert (out / "model").read_text() == "12"
    assert RAN == ["2"]


def test_clean_leaves_nothing_of_the_chain(tmp_path: Path) -> None:
    steps: list[pipeline.Step] = [Append("1"), Append("2")]
    run(steps, tmp_path)
    pipeline.clean(steps, tmp_path / "cache", "")
    assert list((tmp_path / "cache").iterdir()) == []


def test_an_output_knows_how_long_each_step_took(tmp_path: Path) -> None:
    assert pipeline.times(run([Append("1")], tmp_path)).keys() == {"append"}
