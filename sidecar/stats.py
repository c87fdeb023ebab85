"""Counts and times of what was answered, for `stats`. No pixels, names or paths come here."""

import sys
import time
from collections import Counter, defaultdict, deque
from collections.abc import Mapping
from pathlib import Path
from statistics import median, quantiles
from typing import Any

WINDOW = 256  # the latest requests of a resolution that its quantiles are taken over

STAGES = ("queue_ms", "preprocess_ms", "inference_ms", "drawing_ms", "total_ms")

_STATUS = {"VmRSS": "rss_bytes", "VmHWM": "peak_rss_bytes"}


class Stats:
    """Counts by op and code, times in milliseconds. Not locked: the owner holds a lock."""

    def __init__(self) -> None:
        self.begun = time.monotonic()
        self._counts: Counter[tuple[str, str]] = Counter()
        self._image_ms: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=WINDOW))
        self._drawing_ms: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=WINDOW))
        self._times: dict[str, dict[str, deque[float]]] = defaultdict(
            lambda: {stage: deque(maxlen=WINDOW) for stage in STAGES}
        )

    def count(self, op: str, code: str) -> None:
        """Note an answer; `code` is `ok` or that of an error."""
        self._counts[op, code] += 1

    def time(self, resolution: tuple[int, int], images: int, timing: Mapping[str, float]) -> None:
        """Note the times of a request with that many images: milliseconds by stage."""
        name = f"{resolution[0]}x{resolution[1]}"
        for stage in STAGES:
            self._times[name][stage].append(timing[stage])
        busy = timing["preprocess_ms"] + timing["inference_ms"]
        self._image_ms[name].append(busy / images)
        if timing["drawing_ms"]:
            self._drawing_ms[name].append(timing["drawing_ms"])

    def report(self) -> dict[str, Any]:
        """What the op `stats` answers with; see docs/protocol.md."""
        counts: dict[str, dict[str, int]] = defaultdict(dict)
        for (op, code), number in sorted(self._counts.items()):
            counts[op][code] = number
        return {
            "uptime_s": round(time.monotonic() - self.begun, 3),
            "counts": dict(counts),
            "latency": {
                resolution: {stage: _quantiles(list(values)) for stage, values in times.items()}
                for resolution, times in self._times.items()
            },
            # What one image would take if nothing were before it: for an app's progress bar.
            "expected_ms": _medians(self._image_ms),
            "expected_drawing_ms": _medians(self._drawing_ms),  # on top, with a heatmap
            "memory": memory(),
        }


def memory() -> dict[str, int]:
    """Resident bytes of this process, now and at most, as far as the system tells."""
    sizes: dict[str, int] = {}
    if sys.platform == "linux":
        # Not getrusage: its peak is the parent's, until ours is higher.
        try:
            lines = Path("/proc/self/status").read_text("ascii").splitlines()
        except OSError:  # no /proc here, or no descriptor left
            lines = []
        for line in lines:
            key, _, value = line.partition(":")
            if key in _STATUS:
                sizes[_STATUS[key]] = int(value.split()[0]) * 1024
    elif sys.platform != "win32":
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        sizes["peak_rss_bytes"] = peak if sys.platform == "darwin" else peak * 1024
    return sizes


def _medians(times: Mapping[str, deque[float]]) -> dict[str, float]:
    return {resolution: round(median(values), 1) for resolution, values in times.items()}


def _quantiles(values: list[float]) -> dict[str, float]:
    cuts = quantiles(values, n=100, method="inclusive") if len(values) > 1 else values * 99
    return {f"p{percent}": round(cuts[percent - 1], 3) for percent in (50, 90, 99)}
