"""The figures of model directories as a table: `python -m build.report DIR…`; with `--html FILE`,
as plots in one file.

It reads report.json and knows nothing of how the figures came about.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from build import plots

REPORT = "report.json"
GRAPHS = {"plain": "", "kernels": ", custom ops"}  # what a row says, by the report's name
COLUMNS = {
    "token cosine mean": "token_cosine_mean",
    "1 %": "token_cosine_p1",
    "min": "token_cosine_min",
    "pooled min": "pooled_cosine_min",
    "heatmap r mean": "heatmap_r_mean",
    "min ": "heatmap_r_min",
    "neighbours kept": "neighbours_kept",
    "clear ones": "clear_neighbours_kept",
    "Kendall τ": "kendall_tau",
}


def table(reports: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a row for each graph and resolution, and what the figures depend on.

    A second table, where a report has figures of it, is of the test set. Below each: whose
    neighbours changed.
    """
    whole = [other for report in reports for other in _with_compared(report)]
    parts = [_table(whole), _changes(whole)]
    tested = [{**report, **report["test"]} for report in reports if "test" in report]
    if tested:
        count = len(tested[0]["images"])
        parts += [f"The test set, {count} images that decided nothing:", _table(tested)]
        parts += [_changes(tested)]
    notes = dict.fromkeys(_circumstances(report) for report in reports)
    return "\n\n".join(part for part in (*parts, *notes) if part)


def _with_compared(report: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The report of the recipe that this one was compared with, if any, and the report."""
    if "compared" in report:
        yield {**report, "zip": None, **report["compared"]}
    yield report


def _table(reports: Sequence[Mapping[str, Any]]) -> str:
    head = ["recipe, pixels", *COLUMNS, "MB", "zip MB"]
    rows = dict.fromkeys(tuple(row) for report in reports for row in _rows(report))
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(cell.strip() for cell in line) + " |" for line in lines)


def _changes(reports: Sequence[Mapping[str, Any]]) -> str:
    """A line for each image whose nearest neighbour changed, and by how much the old one led."""
    lines = dict.fromkeys(
        f"- `{report['recipe']}`, {side}{GRAPHS[graph]}: {change['image']}, from "
        f"{change['before']} to {change['after']}, which it had led by {change['lead']:.4f}"
        for report in reports
        for graph, by_side in report["changed_neighbours"].items()
        for side, changes in by_side.items()
        for change in changes
    )
    return "\n".join(("Neighbours that changed:", "", *lines)) if lines else ""


def _rows(report: Mapping[str, Any]) -> Iterator[list[str]]:
    size = f"{report['bytes']['model'] / 1e6:.1f}"
    zipped = f"{report['zip']['bytes'] / 1e6:.1f}" if report.get("zip") else ""
    for graph, resolutions in (
        (GRAPHS["plain"], report["resolutions"]),
        (GRAPHS["kernels"], report["kernels"]["resolutions"]),
    ):
        for side, figures in resolutions.items():
            values = (figures[name]["value"] for name in COLUMNS.values())
            label = f"`{report['recipe']}`, {side}{graph}"
            yield [label, *(f"{value:.4f}" for value in values), size, zipped]


def _circumstances(report: Mapping[str, Any]) -> str:
    tools, cpu = report["tools"], report["cpu"]
    return (
        f"Projection `{report['projection']}`; {len(report['images'])} images; {cpu['machine']} "
        f"with {', '.join(cpu['features']) or 'none of the features that matter'}; onnxruntime "
        f"{tools['onnxruntime']}, torch {tools['torch']}, transformers {tools['transformers']}."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0, or 1 after one clear sentence."""
    parser = argparse.ArgumentParser(prog="python -m build.report", description=__doc__)
    parser.add_argument("models", nargs="+", type=Path, help="model directories")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write plots, not a table")
    options = parser.parse_args(argv)
    try:
        reports = [json.loads((model / REPORT).read_text("utf-8")) for model in options.models]
    except (OSError, ValueError) as error:
        print(f"report: expected a model directory with a {REPORT}: {error}", file=sys.stderr)
        return 1
    if options.html:
        options.html.write_text(plots.page(reports), "utf-8")
        print(f"{options.html} is written")
    else:
        print(table(reports))
    return 0


if __name__ == "__main__":
    sys.exit(main())
