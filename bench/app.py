"""What an app sees through the bridge, from Node: round trips, and many files one after another."""

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.client import ROOT
from bench.figures import summary
from bench.guest import MODULE

BRIDGE = ROOT / "electron_bridge"
PROGRAM = ROOT / "bench" / "node" / "bridge.mjs"
IN_FLIGHT = 4


def round_trip(model: str, threads: int, times: int) -> dict[str, Any]:
    """What a call with a native RGB image takes beyond its inference, in ms."""
    found = _run(model, threads, times=times)
    return {name: summary(values) for name, values in found.items()}


def bulk(model: str, threads: int, files: Sequence[Path], repeat_to: int) -> dict[str, Any]:
    """Images per second; the files are taken again and again until there are so many."""
    many = [str(files[index % len(files)]) for index in range(repeat_to)]
    found = _run(model, threads, files=many, inFlight=IN_FLIGHT)
    return {
        "images": len(many),
        "images_per_s": len(many) / found["seconds"],
        "outside_inference": 1 - sum(found["inference_ms"]) / 1e3 / found["seconds"],
        "preprocess_ms": summary(found["preprocess_ms"]),
        "inference_ms": summary(found["inference_ms"]),
    }


def _run(model: str, threads: int, **asked: Any) -> dict[str, Any]:
    command, *arguments = MODULE
    configuration = {
        "bridge": str(BRIDGE),
        "command": command,
        "args": arguments,
        "cwd": str(ROOT),
        "model": model,
        "threads": threads,
        **asked,
    }
    done = subprocess.run(
        ["node", str(PROGRAM), json.dumps(configuration)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found
