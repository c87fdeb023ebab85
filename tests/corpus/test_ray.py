"""A corpus on Ray Data, in short form; tests/corpus_scale.py has the long ones.

Ray is 79 MB to download, so `make install` leaves it out: these run where the extra `corpus` is
installed, as `make corpus` does.
"""

import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests import corpus_scale
from tests.client import ROOT

pytestmark = pytest.mark.skipif(
    find_spec("ray") is None, reason="the extra corpus is not installed: make corpus"
)


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "build.corpus", *words],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    )


def test_two_encoders_give_the_vectors_of_sidecar_encode_and_tell_of_bad_files(
    model: Path, tmp_path: Path
) -> None:
    wrong = corpus_scale.pictures(tmp_path / "in", 24, 5)
    out = tmp_path / "out"
    words = [str(tmp_path / "in"), "--model", str(model), "--out", str(out)]
    done = run(*words, "--actors", "2", "--block", "4")
    assert done.returncode == 0, done.stderr
    assert "24 images, 24 of them new; 0 are done, 24 to do" in done.stdout
    assert done.stdout.splitlines()[-1].endswith("5 bad, whose rows say why")
    rows = {row["id"]: row for row in pq.read_table(out).to_pylist()}
    assert sorted(id for id, row in rows.items() if row["error"]) == sorted(wrong)
    side = rows["00000.jpg"]["resolution"][0]
    assert corpus_scale.compare(model, tmp_path / "in", rows, side, tmp_path / "x") == 19
    again = run(*words)
    assert (again.returncode, again.stdout) == (
        0,
        "24 images, 0 of them new; 24 are done, 0 to do\n",
    )


def test_a_model_that_has_changed_is_told_before_anything_is_encoded(
    model: Path, tmp_path: Path
) -> None:
    corpus_scale.pictures(tmp_path / "in", 2, 0)
    changed = tmp_path / "model"
    shutil.copytree(model, changed)
    graph = next(changed.glob("*.onnx"))
    graph.write_bytes(graph.read_bytes() + b"x")
    done = run(str(tmp_path / "in"), "--model", str(changed), "--out", str(tmp_path / "out"))
    assert done.returncode == 1
    assert done.stderr.startswith("corpus: the machine ")
    assert "cannot encode: " in done.stderr
    assert done.stderr.count("\n") == 1


def test_after_kills_of_driver_actor_and_raylet_every_image_is_there_once(tmp_path: Path) -> None:
    corpus_scale.kills(tmp_path, 120, 10, seed=1)
