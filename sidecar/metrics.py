"""Counts and times of what was answered, for `stats`. No pixels, names or paths come here."""

import os
import sys
import time
from collections import Counter, defaultdict, deque
from collections.abc import Mapping
from statistics import quantiles
from typing import Any

WINDOW = 256  # the latest requests of a resolution that its quantiles are taken over

STAGES = ("queue_ms", "preprocess_ms", "inference_ms", "total_ms")


class Metrics:
    """Not locked: its owner calls it under a lock of its own."""

    def __init__(self) -> None:
        self.begun = time.monotonic()
        self._counts: Counter[tuple[str, str]] = Counter()
        self._times: dict[str, dict[str, deque[float]]] = defaultdict(
            lambda: {stage: deque(maxlen=WINDOW) for stage in STAGES}
        )

    def count(self, op: str, code: str) -> None:
        """`code` is `ok` or that of an error."""
        self._counts[op, code] += 1

    def time(self, resolution: tuple[int, int], timing: Mapping[str, float]) -> None:
        """`timing` in milliseconds by stage, of one image."""
        times = self._times[f"{resolution[0]}x{resolution[1]}"]
        for stage in STAGES:
            times[stage].append(timing[stage])

    def report(self) -> dict[str, Any]:
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
            # What a request would take if nothing were before it: for an app's progress bar.
            "expected_ms": {
                resolution: round(
                    _quantiles(list(times["preprocess_ms"]))["p50"]
                    + _quantiles(list(times["inference_ms"]))["p50"],
                    1,
                )
                for resolution, times in self._times.items()
            },
            "memory": memory(),
        }


def memory() -> dict[str, int]:
    """Bytes this process holds now and held at most, as far as the system tells."""
    found: dict[str, int] = {}
    if sys.platform == "linux":
        with open("/proc/self/statm", encoding="ascii") as statm:  # noqa: PTH123 (hot path)
            found["rss_bytes"] = int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    if sys.platform != "win32":
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found["peak_rss_bytes"] = peak if sys.platform == "darwin" else peak * 1024
    return found


def _quantiles(values: list[float]) -> dict[str, float]:
    cuts = quantiles(values, n=100, method="inclusive") if len(values) > 1 else values * 99
    return {f"p{percent}": round(cuts[percent - 1], 3) for percent in (50, 90, 99)}
