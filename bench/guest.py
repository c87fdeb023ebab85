"""What the process around the model costs: round trip, start, memory, idleness, priority."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.client import ROOT, Sidecar
from bench.figures import percentile, summary

MODULE = (sys.executable, "-m", "sidecar")
FROZEN = (str(ROOT / "dist" / "vision-sidecar" / "vision-sidecar"),)
HEARTBEAT = (sys.executable, "-m", "bench.heartbeat")
SIDES = (224, 448, 672, 896)


def picture(side: int) -> dict[str, np.ndarray]:
    """An RGB input for `encode`."""
    rgb = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    return {"rgb": rgb}


def round_trip(model: str, threads: int, times: int) -> dict[str, Any]:
    """What a request for a native image takes beyond its inference, in ms."""
    found: dict[str, list[float]] = {"beyond_inference_ms": [], "preprocess_ms": []}
    with Sidecar(MODULE, model, "--threads", str(threads)) as sidecar:
        inputs = picture(SIDES[-1])
        sidecar.call("encode", inputs)
        for _ in range(times):
            begun = time.perf_counter()
            timing = sidecar.call("encode", inputs)["timing"]
            whole = (time.perf_counter() - begun) * 1e3
            found["beyond_inference_ms"].append(whole - timing["inference_ms"])
            found["preprocess_ms"].append(timing["preprocess_ms"])
    return {name: summary(values) for name, values in found.items()}


def resolutions(model: str, threads: int, times: int) -> dict[str, Any]:
    """By resolution: seconds an image; the peak of a process that did nothing larger; and after
    that, of the largest, the peak of a batch of four.
    """
    found: dict[str, Any] = {}
    with Sidecar(MODULE, model, "--threads", str(threads)) as sidecar:
        for side in SIDES:
            sidecar.call("encode", picture(side), resolution=side)
            sidecar.forget_peak()
            seconds = [
                sidecar.call("encode", picture(side), resolution=side)["timing"]["inference_ms"]
                / 1e3
                for _ in range(times)
            ]
            found[str(side)] = {
                "seconds": summary(seconds),
                "peak_bytes": sidecar.status_bytes("VmHWM"),
            }
        sidecar.forget_peak()
        batch = np.zeros((4, 3, SIDES[-1], SIDES[-1]), np.float32)
        sidecar.call("encode", {"pixel_values": batch})
        found["batch of 4"] = {"peak_bytes": sidecar.status_bytes("VmHWM")}
    return found


def starts(model: str, threads: int, times: int) -> dict[str, Any]:
    """Seconds from spawn to `listening` and to `ready`; frozen too where there is a bundle, and
    with the files out of the page cache where the system lets go of them.
    """
    found: dict[str, Any] = {}
    for name, command in (("module", MODULE), ("frozen", FROZEN)):
        if not Path(command[0]).exists():
            continue
        files = [*Path(model).iterdir()]
        if name == "frozen":
            files += [file for file in Path(command[0]).parent.rglob("*") if file.is_file()]
        for cache in ("warm", "cold"):
            if cache == "cold" and not hasattr(os, "posix_fadvise"):
                continue
            if cache == "warm":
                _start(command, model, threads)
            listening, ready = [], []
            for _ in range(times):
                if cache == "cold":
                    _evict(files)
                one = _start(command, model, threads)
                listening.append(one[0])
                ready.append(one[1])
            found[f"{name}, {cache}"] = {
                "listening_s": summary(listening),
                "ready_s": summary(ready),
            }
    return found


def idle(model: str, threads: int, seconds: float) -> dict[str, Any]:
    """Processor time over a while of idleness after an image, and the memory held meanwhile."""
    with Sidecar(MODULE, model, "--threads", str(threads)) as sidecar:
        loaded = sidecar.status_bytes("VmRSS")
        sidecar.call("encode", picture(SIDES[-1]))
        time.sleep(1)
        begun = sidecar.cpu_s()
        time.sleep(seconds)
        return {
            "seconds": seconds,
            "cpu_s": sidecar.cpu_s() - begun,
            "loaded_rss_bytes": loaded,
            "resting_rss_bytes": sidecar.status_bytes("VmRSS"),
            "peak_rss_bytes": sidecar.status_bytes("VmHWM"),
        }


def heartbeat(model: str, threads: int, seconds: float) -> dict[str, Any]:
    """How late another process of normal priority wakes: alone, and while all cores encode."""
    found = {"alone": _beat(seconds)}
    for priority in ("low", "normal"):
        with Sidecar(MODULE, model, "--threads", str(threads), "--priority", priority) as sidecar:
            sidecar.call("encode", picture(SIDES[-1]))
            found[priority] = _beat(seconds, sidecar)
    return found


def _beat(seconds: float, sidecar: Sidecar | None = None) -> dict[str, float]:
    with subprocess.Popen(
        HEARTBEAT, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        time.sleep(0.5)  # it starts
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if sidecar is None:
                time.sleep(0.1)
            else:
                sidecar.call("encode", picture(SIDES[-1]))
        late: Sequence[float] = json.loads(other.communicate()[0])
    beats = late[50:]  # while it started
    return {
        "beats": len(beats),
        "p50_ms": percentile(beats, 50),
        "p99_ms": percentile(beats, 99),
        "max_ms": max(beats),
    }


def _start(command: Sequence[str], model: str, threads: int) -> tuple[float, float]:
    with Sidecar(command, model, "--threads", str(threads)) as sidecar:
        return sidecar.listening_s, sidecar.ready_s


def _evict(files: Sequence[Path]) -> None:
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
