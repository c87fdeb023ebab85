"""How much of the machine this process takes: its scheduling priority, and its number of cores."""

import os
import sys
from collections.abc import Iterator
from math import ceil
from pathlib import Path

NICE = 10  # of 19: a window that wants the processor gets nine parts of ten
BELOW_NORMAL_PRIORITY_CLASS = 0x4000  # Windows'

CPUS = Path("/sys/devices/system/cpu")
CGROUPS = Path("/sys/fs/cgroup")


def lower() -> None:
    """Lower this process's priority, for good. Before any thread starts: on Linux each has its own,
    and inherits it.
    """
    if sys.platform == "win32":
        import ctypes

        kernel32 = ctypes.WinDLL("kernel32")
        kernel32.GetCurrentProcess.restype = ctypes.c_void_p
        kernel32.SetPriorityClass.argtypes = (ctypes.c_void_p, ctypes.c_ulong)
        kernel32.SetPriorityClass(kernel32.GetCurrentProcess(), BELOW_NORMAL_PRIORITY_CLASS)
    else:
        os.nice(max(0, NICE - os.nice(0)))  # who started us may have lowered it already


def physical_cores() -> int:
    """The physical cores that this process may use; 0 where only onnxruntime knows them.

    onnxruntime itself counts the whole machine's, whatever a container or `taskset` allows.
    """
    if sys.platform != "linux":
        return 0
    physical = {_siblings(cpu) for cpu in os.sched_getaffinity(0)}
    quotas = [quota(text) for text in _cpu_max()]
    return max(1, min([len(physical), *quotas]))


def quota(cpu_max: str) -> int:
    """How many cores a cgroup's `cpu.max` amounts to, rounded up; very many for no limit."""
    allowed, _, period = cpu_max.partition(" ")
    return sys.maxsize if allowed == "max" else ceil(int(allowed) / int(period))


def _siblings(cpu: int) -> str:
    """What the hardware threads of one core have in common."""
    try:
        return (CPUS / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text()
    except OSError:
        return str(cpu)


def _cpu_max() -> Iterator[str]:
    """The limits of our cgroup and of those that it lies in (version 2)."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        if line.startswith("0::/"):
            own = CGROUPS / line.removeprefix("0::/")
            for group in (own, *own.parents):
                try:
                    yield (group / "cpu.max").read_text()
                except OSError:
                    continue
