"""What Linux tells of the processes below another: which there are, and what they have spent."""

from __future__ import annotations

import os
from pathlib import Path


def descendants(pid: int) -> set[int]:
    """The processes below `pid` that have not ended."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        fields = _fields(entry)
        if fields and fields[0] != "Z":
            parents[int(entry.parent.name)] = int(fields[1])
    found: set[int] = set()
    while more := {child for child, parent in parents.items() if parent in found | {pid}} - found:
        found |= more
    return found


def processor_seconds(pid: int) -> float:
    """What a process has spent; 0 once it has ended."""
    fields = _fields(Path(f"/proc/{pid}/stat"))
    ticks = int(fields[11]) + int(fields[12]) if fields else 0
    return ticks / os.sysconf("SC_CLK_TCK")


def _fields(stat: Path) -> list[str]:
    """Those behind the name, from the state on; none if the process has ended."""
    try:
        return stat.read_text("ascii").rpartition(")")[2].split()
    except OSError:
        return []
