"""The report as one HTML file: it shows what the figures say, and needs nothing else."""

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from build import metrics, plots, report

NAMES = ("a.png", "b<i>.png", "ecg.png")


def outputs(noise: float) -> dict[str, dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    made = {}
    for index, name in enumerate(NAMES):
        tokens = rng.normal(size=(1, 256, 8)).astype(np.float32)
        scores = rng.random((1, 256)).astype(np.float32)
        off = np.random.default_rng(index).normal(size=(1, 256)).astype(np.float32) * noise
        made[name] = {
            "projected_embeddings": tokens + off[..., None],
            "attention_scores": (scores + off * (1 + index)).clip(0, 1),
            "pooled_embedding": tokens.mean(axis=1),
        }
    return made


@pytest.fixture
def described() -> dict[str, Any]:
    expected, actual = outputs(0), outputs(0.05)
    figures = {name: asdict(figure) for name, figure in metrics.compare(expected, actual)}
    return {
        "recipe": "default",
        "projection": "projector",
        "resolutions": {"448": figures},
        "kernels": {"here": "none", "resolutions": {}},
        "plots": {"plain": {"448": metrics.plots(expected, actual)}, "kernels": {}},
        "bars": {"heatmap_r_min": 2.0, "kendall_tau": 0.0},
        "images": list(NAMES),
        "bytes": {"float": 100_000_000, "model": 25_000_000},
        "cpu": {"machine": "x86_64", "features": ["avx2"]},
        "tools": {"onnxruntime": "1", "torch": "2", "transformers": "3"},
        "seconds": {"export": 3.25, "validate": 12.0},
    }


def test_every_token_is_in_the_histogram_and_the_worst_heatmap_is_named() -> None:
    drawn: Any = metrics.plots(outputs(0), outputs(0.05))
    assert sum(drawn["token_distance"]["counts"]) == 256 * len(NAMES)
    assert drawn["worst"]["image"] == "ecg.png"  # it has the most noise
    assert len(drawn["worst"]["reference"]) == len(drawn["worst"]["quantised"]) == 256


def test_equal_outputs_lie_in_the_first_bin() -> None:
    drawn: Any = metrics.plots(outputs(0), outputs(0))
    assert drawn["token_distance"]["counts"][0] == 256 * len(NAMES)


def test_the_page_shows_figures_bars_times_and_maps(described: dict[str, Any]) -> None:
    page = plots.page([described])
    figure = described["resolutions"]["448"]["heatmap_r_min"]["value"]
    assert f'<td class="number missed">{figure:.5f}<small>' in page
    assert "1 of 2 bars are missed." in page
    assert page.count('class="number missed"') == 1
    assert "3.2" in page
    assert page.count("data:image/png;base64,") == 3
    assert "25% of the float model" in page


def test_the_page_says_how_much_of_what_the_bars_allow_is_used(described: dict[str, Any]) -> None:
    figure = described["resolutions"]["448"]["heatmap_r_min"]["value"]
    described["bars"] = {"heatmap_r_min": figure - (1 - figure)}  # half of it
    page = plots.page([described])
    assert "50%" in page
    assert "All 1 bars are met." in page


def test_the_page_loads_nothing_and_runs_nothing(described: dict[str, Any]) -> None:
    page = plots.page([described])
    assert not re.search(r"<script|https?:|url\(|<link", page)
    assert "b<i>.png" not in page  # names are escaped


def test_a_report_of_before_the_plots_has_its_tables(described: dict[str, Any]) -> None:
    del described["plots"], described["seconds"]
    assert "<table>" in plots.page([described])


def test_the_command_writes_one_file(
    described: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text(json.dumps(described))
    out = tmp_path / "report.html"
    models = [str(tmp_path / name) for name in ("one", "two")]
    assert report.main(["--html", str(out), *models]) == 0
    assert out.read_text("utf-8").count("<h2>") == 2
