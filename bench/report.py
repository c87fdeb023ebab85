"""The benchmark's figures as text: a heading, then a table for each section. Pure."""

from collections.abc import Callable, Mapping
from typing import Any

from bench.figures import MB, NONE, fastest, number, ratio, table
from bench.rows import ROWS

SEED = "seed"
OPENVINO = (
    "openvino"  # the row that ratios are to; the fastest faithful one is named below the table
)
TITLES = {row.name: row.title for row in ROWS}
NOISY = 0.05  # of all cores

Found = Mapping[str, Any]


def heading(result: Found) -> str:
    """What the figures depend on."""
    where = result["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    return "\n".join(
        [
            f"{result['command']}, {result['begun']}",
            f"{where['cpu']} (family/model/stepping {where['family_model_stepping']}), "
            f"{where['cores']} cores, {where['threads']} threads, {where['memory_gb']} GB",
            f"features: {', '.join(where['features'])}",
            f"{where['system']}, Python {where['python']}, Node {where['node']}",
            versions,
            f"SigLIP-So400m geometry, {result['layers']} layers, random weights; fidelity, bulk "
            "and resolutions' agreement on the demo checkpoint.",
        ]
    )


def section(name: str, found: Found, others: float | None) -> str:
    """One section's table, and how much of the processor others used meanwhile."""
    noise = ""
    if others is not None:
        verdict = "; take the times for upper bounds" if others > NOISY else ""
        noise = f"\nOther processes used {others:.0%} of the processor meanwhile{verdict}."
    return f"\n## {name.replace('_', ' ')}\n\n{_SECTIONS[name](found)}{noise}"


def engines(found: Found) -> str:
    """The table of the field: ratios are times as fast, and times the memory."""
    seconds = {name: row["seconds"]["median"] for name, row in found.items() if "seconds" in row}
    head = (
        *("", "s an image", "(min–max)", "× seed", "× OpenVINO", "peak MB", "of seed"),  # noqa: RUF001
        *("file MB", "cosine mean", "min", "demo: token", "heatmap r min", "bars"),
    )
    rows = []
    for name, row in found.items():
        if name not in seconds:
            rows.append([TITLES[name], *([NONE] * (len(head) - 2)), "not run"])
            continue
        spread = row["seconds"]
        rows.append(
            [
                TITLES[name],
                number(spread["median"]),
                f"{spread['min']:.2f}–{spread['max']:.2f}",  # noqa: RUF001
                number(ratio(seconds.get(SEED), spread["median"])),
                number(ratio(seconds.get(OPENVINO), spread["median"])),
                number(row["peak_bytes"] / MB, 0),
                number(ratio(row["peak_bytes"], found.get(SEED, {}).get("peak_bytes"))),
                number(row["bytes"] / MB, 1),
                number(row["cosine"]["mean"], 5),
                number(row["cosine"]["min"], 4),
                *_fidelity(row["fidelity"]),
            ]
        )
    lines = [table(head, rows)]
    for name, row in found.items():
        if reason := row.get("missing") or row["fidelity"].get("missing"):
            lines.append(f"{TITLES[name]}: {reason}")
        if kernels := row.get("notes", {}).get("kernels"):
            lines.append(f"{TITLES[name]}: kernels {kernels}")
        if row.get("fidelity", {}).get("missed"):
            lines.append(f"{TITLES[name]} misses {', '.join(row['fidelity']['missed'])}.")
    faithful = [name for name, row in found.items() if row.get("fidelity", {}).get("missed") == []]
    peer = fastest(seconds, [name for name in faithful if name.startswith(OPENVINO)])
    ours = fastest(seconds, [name for name in faithful if not name.startswith(OPENVINO)])
    if peer and ours:
        times = number(ratio(seconds[peer], seconds[ours]))
        lines.append(f"At the bars, {TITLES[ours]} is {times} × as fast as {TITLES[peer]}.")  # noqa: RUF001
    return "\n".join(lines)


def round_trip(found: Found) -> str:
    """Milliseconds beyond the inference."""
    return table(
        ("beyond inference, ms", "median", "min", "max", "of it preprocessing"),
        [
            [
                name,
                *_three(row["beyond_inference_ms"], 1),
                number(row.get("preprocess_ms", {}).get("median"), 1),
            ]
            for name, row in found.items()
        ],
    )


def start(found: Found) -> str:
    """Seconds from spawn."""
    return table(
        ("from spawn, s", "listening", "ready", "min", "max"),
        [
            [f"{model}: {name}", number(row["listening_s"]["median"]), *_three(row["ready_s"], 2)]
            for model, ways in found.items()
            for name, row in ways.items()
        ],
    )


def resolutions(found: Found) -> str:
    """By resolution, the time it saves and the agreement that it costs."""
    rows = []
    for name, row in found.items():
        agreement = (row.get("agreement") or {}).get("figures", {})
        rows.append(
            [
                name,
                *(_three(row["seconds"], 2) if "seconds" in row else [NONE] * 3),
                number(row["peak_bytes"] / MB, 0),
                number(agreement.get("token_cosine_mean"), 3),
                number(agreement.get("heatmap_r_mean"), 3),
                number(agreement.get("heatmap_r_min"), 3),
                number(agreement.get("neighbours_kept")),
            ]
        )
    head = (
        *("resolution", "s an image", "min", "max", "peak MB"),
        *("demo: token cosine", "heatmap r mean", "min", "nearest kept"),
    )
    return table(head, rows)


def bulk(found: Found) -> str:
    """Throughput through the bridge."""
    return (
        f"{found['images']} files through the bridge: {found['images_per_s']:.2f} images/s; "
        f"{found['outside_inference']:.1%} of the time no inference ran. An image took "
        f"{found['preprocess_ms']['median']:.1f} ms to decode and resize, "
        f"{found['inference_ms']['median']:.0f} ms to infer (medians)."
    )


def idle(found: Found) -> str:
    """What waiting costs."""
    return (
        f"{found['cpu_s']:.2f} s of processor time in {found['seconds']:.0f} s of idleness. "
        f"Memory held: {found['loaded_rss_bytes'] / MB:.0f} MB once loaded, "
        f"{found['resting_rss_bytes'] / MB:.0f} MB at rest after an image, "
        f"{found['peak_rss_bytes'] / MB:.0f} MB at the peak."
    )


def heartbeat(found: Found) -> str:
    """How late another process wakes."""
    titles = {"alone": "nothing encodes", "low": "priority low", "normal": "priority normal"}
    return table(
        ("woken late by, ms", "median", "99th percentile", "max"),
        [
            [titles[name], *(number(row[key], 1) for key in ("p50_ms", "p99_ms", "max_ms"))]
            for name, row in found.items()
        ],
    )


_SECTIONS: dict[str, Callable[[Found], str]] = {
    "engines": engines,
    "round_trip": round_trip,
    "start": start,
    "resolutions": resolutions,
    "bulk": bulk,
    "idle": idle,
    "heartbeat": heartbeat,
}


def _fidelity(found: Found) -> list[str]:
    if "missing" in found:
        return [NONE, NONE, NONE]
    figures = found["figures"]
    verdict = "missed" if found["missed"] else "met"
    token, heat = figures["token_cosine_mean"], figures["heatmap_r_min"]
    return [number(token, 4), number(heat, 3), verdict]


def _three(values: Mapping[str, float], digits: int) -> list[str]:
    return [number(values[name], digits) for name in ("median", "min", "max")]
