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

FIGURES = {
    "token_cosine_mean": "token cosine, mean",
    "token_cosine_p1": "token cosine, 1st percentile",
    "token_cosine_min": "token cosine, least",
    "pooled_cosine_min": "pooled cosine, least",
    "heatmap_r_mean": "heatmap r, mean",
    "heatmap_r_min": "heatmap r, least",
    "neighbours_kept": "neighbours kept",
    "clear_neighbours_kept": "clear neighbours kept",
    "kendall_tau": "Kendall tau",
}
GRAPHS = {"plain": "ONNX Runtime's operators", "kernels": "custom ops"}
BLUE, WHITE, RED = np.array([[33, 102, 172], [247, 247, 247], [178, 24, 43]], np.float64)

_STYLE = """
:root {
  color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif;
  --ground: #f4f4f2; --paper: #fff; --line: #d3d3cf; --ink: #1c1c1a; --quiet: #5a5a55;
  --fill: #b4690e; --ok: #1f6b3a; --bad: #a4201c;
}
@media (prefers-color-scheme: dark) { :root {
  --ground: #191917; --paper: #232321; --line: #3c3c38; --ink: #ececea; --quiet: #b0b0aa;
  --fill: #e39a3f; --ok: #79d29a; --bad: #ff9a94;
} }
* { box-sizing: border-box; }
body { max-width: 68rem; margin: 0 auto; padding: 1.2rem; background: var(--ground);
  color: var(--ink); }
h1 { font-size: 1.5rem; margin: .4rem 0 1rem; }
h2 { font-size: 1.2rem; margin: 0; }
h3 { font-size: 1rem; margin: 1.6rem 0 .3rem; }
p { margin: .3rem 0; }
.quiet, figcaption, td small { color: var(--quiet); font-size: .87rem; }
section { margin-bottom: 1.4rem; padding: 1.1rem 1.3rem; border: 1px solid var(--line);
  border-radius: 10px; background: var(--paper); }
.verdict { font-weight: 600; color: var(--ok); }
.missed { color: var(--bad); font-weight: 600; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin-top: .4rem; }
th, td { padding: .25rem .9rem .25rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); }
th { font-weight: 600; vertical-align: bottom; }
th small { font-weight: 400; }
td:first-child { white-space: nowrap; }
td.number { font-variant-numeric: tabular-nums; }
td small { display: block; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr));
  gap: .8rem 2rem; }
.bars { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .15rem .7rem;
  align-items: center; margin-top: .4rem; font-size: .87rem; font-variant-numeric: tabular-nums; }
.bars > :nth-child(odd) { text-align: right; color: var(--quiet); }
.bars span { display: flex; align-items: center; gap: .4rem; }
svg { flex: 0 1 auto; display: block; width: 100%; height: .8rem; }
svg rect { fill: var(--fill); }
svg .track { fill: var(--line); }
.bars b { min-width: 2.6rem; font-weight: 400; text-align: right; }
.bars .over .length { fill: var(--bad); }
.maps { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: .6rem; }
figure { margin: 0; }
img { width: 100%; image-rendering: pixelated; display: block; border: 1px solid var(--line); }
"""


def page(reports: Sequence[Report]) -> str:
    """The whole file. A report without the arrays of the plots has its tables only."""
    parts = ["<!doctype html>", '<html lang="en"><head><meta charset="utf-8">']
    parts += ['<meta name="viewport" content="width=device-width, initial-scale=1">']
    parts += [f"<title>Fidelity</title><style>{_STYLE}</style></head><body>"]
    parts += ["<h1>Fidelity to the float model</h1>"]
    for report in reports:
        title = f"Recipe {report['recipe']}, projection {report['projection']}"
        parts += [f"<section><h2>{escape(title)}</h2>", *_about(report), *_table(report)]
        parts += [*_allowed(report), *_plots(report), *_times(report), "</section>"]
    return "\n".join([*parts, "</body></html>", ""])


def _columns(report: Report) -> list[tuple[str, str, Mapping[str, Any]]]:
    """Graph, side length and figures of each measurement."""
    return [
        (graph, side, figures)
        for graph, by_side in (
            ("plain", report["resolutions"]),
            ("kernels", report["kernels"]["resolutions"]),
        )
        for side, figures in by_side.items()
    ]


def _bars_of(report: Report) -> dict[str, float]:
    return {name: bar for name, bar in report["bars"].items() if bar is not None}


def _about(report: Report) -> Iterator[str]:
    bars, bytes_, tools = _bars_of(report), report["bytes"], report["tools"]
    features = ", ".join(report["cpu"]["features"]) or "none of the features that matter"
    checked = [
        figures[name]["value"] >= bar
        for _, _, figures in _columns(report)
        for name, bar in bars.items()
        if name in figures
    ]
    missed = len(checked) - sum(checked)
    if missed:
        yield f'<p class="missed">{missed} of {len(checked)} bars are missed.</p>'
    elif checked:
        yield f'<p class="verdict">All {len(checked)} bars are met.</p>'
    share = bytes_["model"] / bytes_["float"]
    yield (
        f"<p>{bytes_['model'] / 1e6:.1f} MB, {share:.0%} of the float model's "
        f"{bytes_['float'] / 1e6:.1f} MB. Compared on {len(report['images'])} real images.</p>"
        f'<p class="quiet">{escape(report["cpu"]["machine"])} with {escape(features)}; '
        f"onnxruntime {escape(tools['onnxruntime'])}, torch {escape(tools['torch'])}. 1 means "
        "equal to the float model.</p>"
    )


def _table(report: Report) -> Iterator[str]:
    """Figures down, graphs and resolutions across; below a value, the image that it is of."""
    columns, bars = _columns(report), _bars_of(report)
    heads = [
        f"<th>{side} pixels<br><small>{GRAPHS[graph]}</small></th>" for graph, side, _ in columns
    ]
    yield '<div class="wide"><table>'
    yield f"<tr><th>figure</th><th>bar</th>{''.join(heads)}</tr>"
    for name in columns[0][2] if columns else ():
        bar = bars.get(name)
        cells = [_cell(figures.get(name), bar) for _, _, figures in columns]
        words = escape(FIGURES.get(name, name))
        yield f'<tr><td>{words}</td><td class="number">{"" if bar is None else bar}</td>'
        yield f"{''.join(cells)}</tr>"
    yield "</table></div>"


def _cell(figure: Mapping[str, Any] | None, bar: float | None) -> str:
    if figure is None:
        return "<td></td>"
    missed = bar is not None and figure["value"] < bar
    # Where all is kept, no image is the worst.
    image = f"<small>{escape(figure['image'])}</small>" if figure["value"] < 1 - 1e-9 else ""
    return f'<td class="number{" missed" if missed else ""}">{figure["value"]:.5f}{image}</td>'


def _allowed(report: Report) -> Iterator[str]:
    """Of what a bar leaves room for, how much is used: the worst of the measurements."""
    rows = []
    for name, bar in _bars_of(report).items():
        values = [figures[name]["value"] for _, _, figures in _columns(report) if name in figures]
        if values and bar < 1:
            used = (1 - min(values)) / (1 - bar)
            rows.append((FIGURES.get(name, name), used, f"{used:.0%}"))
    if rows:
        yield "<h3>Figures against their bars</h3>"
        yield '<p class="quiet">Distance to 1 as a share of what the bar allows, at its'
        yield " worst. More than 100 % misses the bar.</p>" + _bars(rows, most=1, over=1)


def _plots(report: Report) -> Iterator[str]:
    drawn = [
        (f"{side} pixels, {GRAPHS[graph]}", plots)
        for graph, side, _ in _columns(report)
        if (plots := report.get("plots", {}).get(graph, {}).get(side))
    ]
    if not drawn:
        return
    yield "<h3>How far tokens are off</h3>"
    yield '<p class="quiet">Number of tokens by 1 &minus; cosine to the reference, from each row\'s'
    yield " value on. Bars are logarithmic: a few tokens that are far off must be seen.</p>"
    yield '<div class="grid">'
    for title, plots in drawn:
        yield f"<div><p>{escape(title)}</p>{_histogram(plots['token_distance'])}</div>"
    yield "</div><h3>The worst heatmap</h3>"
    yield '<p class="quiet">Scores of 0 are dark blue, of 1 yellow. In the difference, red is'
    yield ' higher than the float model, blue lower.</p><div class="grid">'
    for title, plots in drawn:
        worst = plots["worst"]
        yield f"<div><p>{escape(title)}: {escape(worst['image'])}</p>{_maps(worst)}</div>"
    yield "</div>"


def _times(report: Report) -> Iterator[str]:
    rows = [(name, float(took), f"{took:.1f}") for name, took in report.get("seconds", {}).items()]
    if rows:
        yield "<h3>Seconds of each step of the build</h3>" + _bars(rows)


def _histogram(histogram: Mapping[str, Sequence[float]]) -> str:
    counts, edges = histogram["counts"], histogram["edges"]
    used = [index for index, count in enumerate(counts) if count]
    shown = range(used[0], used[-1] + 1) if used else ()
    rows = []
    for i in shown:
        edge = np.format_float_positional(10 ** edges[i], 2, fractional=False, trim="-")
        rows.append((edge, float(np.log10(1 + counts[i])), f"{counts[i]:.0f}"))
    return _bars(rows)


def _bars(
    rows: Sequence[tuple[str, float, str]], most: float = 0, over: float = float("inf")
) -> str:
    """Horizontal bars: a label, a length and a text each. `most`: what a full bar is, at least."""
    longest = max([*(length for _, length, _ in rows), most, 1e-9])
    parts = ['<div class="bars">']
    for label, length, text in rows:
        track = f'<rect class="track" width="{100 * most / longest:.1f}" height="8"/>'
        parts.append(
            f"<span>{escape(label)}</span>"
            f'<span{" class=over" if length > over else ""}><svg viewBox="0 0 100 8" '
            f'preserveAspectRatio="none" aria-hidden="true">{track if most else ""}'
            f'<rect class="length" width="{100 * length / longest:.1f}" height="8"/></svg>'
            f"<b>{escape(text)}</b></span>"
        )
    return "".join([*parts, "</div>"])


def _maps(worst: Mapping[str, Any]) -> str:
    """The heatmaps of the image whose heatmap is worst: reference, quantised, difference."""
    reference, quantised = np.array(worst["reference"]), np.array(worst["quantised"])
    difference = quantised - reference
    most = float(np.abs(difference).max())
    maps = (
        ("float", _scores(reference)),
        ("quantised", _scores(quantised)),
        (f"difference, ±{most:.2g}", _signed(difference / (most or 1))),
    )
    figures = [
        f'<figure><img alt="" src="{url}"><figcaption>{name}</figcaption></figure>'
        for name, url in maps
    ]
    return f'<div class="maps">{"".join(figures)}</div>'


def _scores(values: np.ndarray) -> str:
    """256 values from 0 to 1, as a picture."""
    level = (values.clip(0, 1) * (colormaps.LEVELS - 1)).round().astype(int)
    return _image(colormaps.colours("viridis")[level])


def _signed(values: np.ndarray) -> str:
    """256 values from -1 (blue) to 1 (red), as a picture."""
    share = np.abs(values)[:, None]
    return _image(WHITE * (1 - share) + np.where(values[:, None] < 0, BLUE, RED) * share)


def _image(colours: np.ndarray) -> str:
    """256 colours as the data URL of a PNG of 16 x 16 pixels."""
    pixels = colours.round().astype(np.uint8).reshape(GRID, GRID, 3)
    file = png.write(GRID, GRID, [pixels], {})
    return f"data:image/png;base64,{base64.b64encode(file).decode()}"
