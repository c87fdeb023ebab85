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
    """Markdown: a row for each graph and resolution, and what the figures depend on."""
    head = ["recipe, pixels", *COLUMNS, "MB"]
    rows = [row for report in reports for row in _rows(report)]
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    text = "\n".join("| " + " | ".join(cell.strip() for cell in line) + " |" for line in lines)
    notes = dict.fromkeys(_circumstances(report) for report in reports)
    return "\n\n".join([text, *notes])


def _rows(report: Mapping[str, Any]) -> Iterator[list[str]]:
    size = f"{report['bytes']['model'] / 1e6:.1f}"
    for graph, resolutions in (
        ("", report["resolutions"]),
        (", custom ops", report["kernels"]["resolutions"]),
    ):
        for side, figures in resolutions.items():
            values = (figures[name]["value"] for name in COLUMNS.values())
            label = f"`{report['recipe']}`, {side}{graph}"
            yield [label, *(f"{value:.4f}" for value in values), size]


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
