"""Models that are built without measurements: which steps are left, and that a report is drawn."""

import json
from pathlib import Path

import pytest

from bench.unmeasured import NoReport, unmeasured
from build import plots
from build.artifacts import FLOAT, REPORT, Artifact
from build.pipeline import Inputs
from build.recipes import RECIPES, Choice


@pytest.mark.parametrize("name", ["seed", "default", "float"])
def test_a_recipe_without_measurements_still_writes_all_that_packaging_reads(name: str) -> None:
    steps = tuple(unmeasured(RECIPES[name](Choice())))
    assert not {"Reference", "Validate", "MeasureFlat"} & {type(step).__name__ for step in steps}
    written = {Artifact.CHECKPOINT}
    for step in steps:
        assert written >= {*step.reads}
        written.add(step.writes)
    assert Artifact.MANIFEST in written


def test_the_report_of_a_model_without_measurements_can_be_drawn(tmp_path: Path) -> None:
    graphs, out = tmp_path / "graphs", tmp_path / "out"
    graphs.mkdir()
    out.mkdir()
    (graphs / FLOAT).write_bytes(b"a graph")
    NoReport(Artifact.FLOAT_GRAPH)(Inputs({Artifact.FLOAT_GRAPH: graphs}), out)
    report = json.loads((out / REPORT).read_text("utf-8"))
    tools = {"onnxruntime": "1", "torch": "2"}
    page = plots.page([{"recipe": "float", "projection": "linear", "tools": tools, **report}])
    assert "Compared on 0 real images" in page
