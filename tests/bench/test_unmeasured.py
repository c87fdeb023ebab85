"""A model that was built without measurements is one that the sidecar loads."""

from pathlib import Path

from bench.unmeasured import unmeasured
from build import pipeline
from build.__main__ import place
from build.checkpoint import locate
from build.recipes import RECIPES, Choice
from sidecar import model_files
from tests import tiny


def test_a_recipe_without_its_measurements_gives_a_model_directory(tmp_path: Path) -> None:
    source = locate(str(tiny.checkpoint(tmp_path / "checkpoint")))
    chain = (source, *unmeasured(RECIPES["float"](Choice(no_bars=True))))
    names = [type(step).__name__ for step in chain]
    assert not {"Reference", "Validate", "MeasureFlat"} & {*names}
    place(pipeline.run(chain, tmp_path / "work", lambda _: None), tmp_path / "model", {})
    assert model_files.load(tmp_path / "model").recipe == "float"
