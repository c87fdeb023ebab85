"""What the figures depend on: the processor, its features, versions, and who else is at work."""

import os
import platform
import resource
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

FEATURES = (
    *("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"),
    *("asimd", "asimddp", "i8mm", "bf16"),
)
PACKAGES = ("onnxruntime", "openvino", "nncf", "torch", "transformers", "numpy", "pyzmq", "pillow")


def describe(threads: int) -> dict[str, object]:
    """Everything that a reader of the figures should know of this machine."""
    return {
        "cpu": _field("model name") or platform.processor() or platform.machine(),
        "family_model_stepping": "/".join(
            _field(name) or "?" for name in ("cpu family", "model", "stepping")
        ),
        "features": [name for name in FEATURES if name in _flags()],
        "cores": os.cpu_count(),
        "threads": threads,
        "memory_gb": round(_memory_bytes() / 1e9, 1),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "node": _output("node", "--version"),
        "versions": versions(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def versions() -> dict[str, str]:
    """Of the packages that figures depend on, those that are installed."""
    return {name: found for name in PACKAGES if (found := _version(name))}


class Neighbours:
    """How much of the processor others used since this was made: the noise in our figures.

    Children that have not ended yet count as others; /proc is needed.
    """

    def __init__(self) -> None:
        self._busy, self._total = _jiffies()
        self._own = _own_seconds()

    def share(self) -> float | None:
        """From 0 to 1 of all cores; None where the system does not tell."""
        busy, total = _jiffies()
        if total == self._total:
            return None
        others = (busy - self._busy) / os.sysconf("SC_CLK_TCK") - (_own_seconds() - self._own)
        return max(0.0, others) / ((total - self._total) / os.sysconf("SC_CLK_TCK"))


def available_bytes() -> int:
    """Memory that new processes can have; as much as there is where the system does not tell."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return _memory_bytes()


def _memory_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _jiffies() -> tuple[int, int]:
    try:
        first = Path("/proc/stat").read_text().splitlines()[0]
    except OSError:
        return 0, 0
    user, nice, system, idle, waiting, *interrupts = map(int, first.split()[1:9])
    busy = user + nice + system + sum(interrupts)
    return busy, busy + idle + waiting


def _own_seconds() -> float:
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _flags() -> Sequence[str]:
    return (_field("flags") or _field("Features") or "").split()


def _field(name: str) -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    return next(
        (line.partition(":")[2].strip() for line in lines if line.split(":")[0].strip() == name),
        None,
    )


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _output(*command: str) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
