"""What the sidecar takes of the machine, as seen from outside of it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sidecar import priority

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("cpu_max", "cores"),
    [
        pytest.param("200000 100000\n", 2, id="two whole cores"),
        pytest.param("150000 100000\n", 2, id="a core and a half"),
        pytest.param("50000 100000\n", 1, id="half a core"),
    ],
)
def test_a_limit_on_processor_time_becomes_a_number_of_cores(cpu_max: str, cores: int) -> None:
    assert priority.quota(cpu_max) == cores


def test_no_limit_leaves_every_core() -> None:
    assert priority.quota("max 100000\n") > 1_000_000


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere onnxruntime counts the cores")
def test_no_more_cores_are_counted_than_this_process_may_run_on() -> None:
    only = min(os.sched_getaffinity(0))
    assert _child(f"os.sched_setaffinity(0, [{only}]); print(priority.physical_cores())") == "1"


@pytest.mark.skipif(sys.platform == "win32", reason="niceness is Unix's")
def test_a_child_that_yields_is_nicer_than_its_parent_but_not_nicer_twice() -> None:
    nice = os.nice(0)
    assert _child("priority.lower(); print(os.nice(0))") == str(max(nice, priority.NICE))
    twice = "priority.lower(); priority.lower(); print(os.nice(0))"
    assert _child(twice) == str(max(nice, priority.NICE))


def _child(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", f"import os; from sidecar import priority; {code}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere onnxruntime counts the cores")
def test_a_system_that_tells_nothing_of_its_cores_has_one_for_each_hardware_thread(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(priority, "CPUS", tmp_path)
    monkeypatch.setattr(priority, "CGROUPS", tmp_path)
    assert priority.physical_cores() == len(os.sched_getaffinity(0))
