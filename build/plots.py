"""The figures of model directories as one HTML file: no server, no network, no script.

It draws what report.json holds, and knows nothing of how the figures came about.
"""

import base64
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from sidecar import colormaps, png
from sidecar.manifest import GRID

Report = Mapping[str, Any]

_STYLE = """
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif; }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: .6rem 0 1.4rem; }
th, td { padding: .2rem .8rem .2rem 0; text-align: left; border-bottom: 1px solid #8884; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
.missed { color: #c22; font-weight: 600; }
.maps { display: flex; gap: 1.2rem; margin-bottom: 1.4rem; }
figure { margin: 0; }
img { width: 11rem; image-rendering: pixelated; display: block; border: 1px solid #8884; }
svg { width: 100%; max-width: 44rem; height: auto; }
svg text { fill: currentColor; font-size: 11px; }
svg .bar { fill: #2a78b8; } svg .line { stroke: currentColor; opacity: .4; }
small { opacity: .75; }
"""


def page(reports: Sequence[Report]) -> str:
    """The whole file. A report without the arrays of the plots has its tables only."""
    parts = ["<!doctype html>", '<html lang="en"><head><meta charset="utf-8">']
    parts += ["<title>Fidelity</title>", f"<style>{_STYLE}</style></head><body>"]
    parts += ["<h1>Fidelity of model directories</h1>"]
    for report in reports:
        title = f"{report['recipe']}, projection {report['projection']}"
        parts += [f"<h2>{escape(title)}</h2>", *_about(report)]
        for graph, by_side in (
            ("plain", report["resolutions"]),
            ("kernels", report["kernels"]["resolutions"]),
        ):
            for side, figures in by_side.items():
                parts += [f"<h3>{side} pixels, {graph} graph</h3>", *_figures(report, figures)]
                plots = report.get("plots", {}).get(graph, {}).get(side)
                if plots:
                    parts += [*_histogram(plots["token_distance"]), *_maps(plots["worst"])]
    return "\n".join([*parts, "</body></html>", ""])


def _about(report: Report) -> Iterator[str]:
    bytes_, tools = report["bytes"], report["tools"]
    share = bytes_["model"] / bytes_["float"]
    yield (
        f"<p>{bytes_['model'] / 1e6:.1f} MB, {share:.0%} of the float model's "
        f"{bytes_['float'] / 1e6:.1f} MB. "
        f"{len(report['images'])} images. {escape(report['cpu']['machine'])} with "
        f"{escape(', '.join(report['cpu']['features']) or 'none of the features that matter')}; "
        f"onnxruntime {escape(tools['onnxruntime'])}, torch {escape(tools['torch'])}.</p>"
    )
    seconds = report.get("seconds", {})
    if seconds:
        yield "<p>Seconds of each step:</p>" + _bars(
            [(name, float(value), f"{value:.1f}") for name, value in seconds.items()]
        )


def _figures(report: Report, figures: Mapping[str, Any]) -> Iterator[str]:
    yield "<table><tr><th>figure</th><th>value</th><th>bar</th><th>worst image</th></tr>"
    for name, figure in figures.items():
        bar = report["bars"].get(name)
        missed = bar is not None and figure["value"] < bar
        yield (
            f"<tr><td>{escape(name)}</td>"
            f'<td class="number{" missed" if missed else ""}">{figure["value"]:.5f}</td>'
            f'<td class="number">{"" if bar is None else bar}</td>'
            f"<td>{escape(figure['image'])}</td></tr>"
        )
    yield "</table>"


def _histogram(histogram: Mapping[str, Sequence[float]]) -> Iterator[str]:
    """Of 1 - cosine, on a logarithmic scale: a few tokens that are far off must be seen."""
    counts, edges = histogram["counts"], histogram["edges"]
    used = [index for index, count in enumerate(counts) if count]
    if not used:
        return
    shown = range(used[0], used[-1] + 1)
    rows = [(f"10^{edges[i]:.2f}", float(counts[i]), f"{counts[i]:.0f}") for i in shown]
    yield "<p>Tokens by 1 &minus; cosine to the reference, from each row's number on:</p>" + _bars(
        rows, log=True
    )


def _bars(rows: Sequence[tuple[str, float, str]], log: bool = False) -> str:
    """Horizontal bars: a label, a value and its text each."""
    size = [np.log10(1 + value) if log else value for _, value, _ in rows]
    most = max([*size, 1e-9])
    parts = [f'<svg viewBox="0 0 640 {18 * len(rows) + 4}" role="img">']
    for index, ((label, _, text), length) in enumerate(zip(rows, size, strict=True)):
        top, width = 18 * index + 2, 440 * length / most
        parts += [
            f'<text x="112" y="{top + 12}" text-anchor="end">{escape(label)}</text>',
            f'<rect class="bar" x="120" y="{top + 2}" width="{width:.1f}" height="12"/>',
            f'<text x="{126 + width:.1f}" y="{top + 12}">{escape(text)}</text>',
        ]
    return "".join([*parts, "</svg>"])


def _maps(worst: Mapping[str, Any]) -> Iterator[str]:
    """The heatmaps of the image whose heatmap is worst: reference, quantised, difference."""
    reference, quantised = np.array(worst["reference"]), np.array(worst["quantised"])
    difference = quantised - reference
    most = float(np.abs(difference).max())
    yield f"<p>The worst heatmap, {escape(worst['image'])}:</p>" + '<div class="maps">'
    for name, values in (
        ("reference", reference),
        ("quantised", quantised),
        (f"difference, ±{most:.2g}", 0.5 + difference / (2 * most or 1)),
    ):
        yield f'<figure><img alt="" src="{_image(values)}"><figcaption>{name}</figcaption></figure>'
    yield "</div>"


def _image(values: np.ndarray) -> str:
    """256 values from 0 to 1 as the data URL of a PNG of 16 x 16 pixels."""
    level = (values.clip(0, 1) * (colormaps.LEVELS - 1)).round().astype(int).reshape(GRID, GRID)
    pixels = colormaps.colours("viridis")[level].round().astype(np.uint8)
    file = png.write(GRID, GRID, [pixels], {})
    return f"data:image/png;base64,{base64.b64encode(file).decode()}"
