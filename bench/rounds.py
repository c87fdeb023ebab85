"""Runs each row's engine in a process of its own, one at a time, round after round.

Each round starts every engine afresh: so no two are in memory together, and what disturbs the
machine for a while disturbs all rows alike.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.figures import summary
from bench.rows import Row

ROOT = Path(__file__).parents[1]
NODE_MODULES = ROOT / ".work" / "bench" / "node"
NODE_ENGINE = ROOT / "bench" / "node" / "engine.mjs"

Tell = Callable[[str], None]


def run(
    row: Row,
    model: Mapping[str, Any],
    inputs: Sequence[Path],
    side: int,
    *,
    threads: int,
    warmups: int,
    runs: int,
    outputs: Path | None = None,
) -> dict[str, Any]:
    """What `engines` reports; or `failed`, with the last line of what the engine said."""
    asked = {
        "engine": row.engine,
        "model": model,
        "options": row.options,
        "threads": threads,
        "inputs": [str(path) for path in inputs],
        "side": side,
        "warmups": warmups,
        "runs": runs,
        "outputs": None if outputs is None else str(outputs),
        "modules": str(NODE_MODULES),
    }
    if outputs is not None:
        outputs.mkdir(parents=True, exist_ok=True)
    command = (
        ["node", str(NODE_ENGINE)]
        if row.engine == "node"
        else [sys.executable, "-m", "bench.engines"]
    )
    environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(
        [*command, json.dumps(asked)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        return {"failed": said[-1]}
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def interleave(
    rows: Sequence[Row],
    models: Mapping[str, Mapping[str, Any]],
    image: Path,
    side: int,
    *,
    threads: int,
    rounds: int,
    runs: int,
    scratch: Path,
    tell: Tell,
) -> dict[str, dict[str, Any]]:
    """By row: `seconds` and `load_s` summed up, `peak_bytes` at most; or why there are none.

    What a row makes of the image lies in `scratch` under its name afterwards.
    """
    found: dict[str, dict[str, Any]] = {}
    reports: dict[str, list[dict[str, Any]]] = {row.name: [] for row in rows}
    for number in range(rounds):
        for row in rows:
            model = models[row.model]
            if "missing" in model:
                found[row.name] = {"missing": model["missing"]}
            if row.name in found:
                continue
            outputs = scratch / row.name if number == 0 else None
            report = run(
                row, model, [image], side, threads=threads, warmups=1, runs=runs, outputs=outputs
            )
            if "failed" in report:
                found[row.name] = {"missing": report["failed"]}
                tell(f"round {number + 1} of {rounds}: {row.name} failed: {report['failed']}")
                continue
            reports[row.name].append(report)
            times = " ".join(f"{seconds:.2f}" for seconds in report["seconds"])
            tell(f"round {number + 1} of {rounds}: {row.name} {times} s")
    for row in rows:
        if row.name not in found:
            found[row.name] = _sum_up(reports[row.name]) | {"bytes": models[row.model]["bytes"]}
    return found


def _sum_up(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "seconds": summary([seconds for report in reports for seconds in report["seconds"]]),
        "load_s": summary([report["load_s"] for report in reports]),
        "peak_bytes": max(report["peak_bytes"] for report in reports),
        "notes": reports[-1]["notes"],
    }
