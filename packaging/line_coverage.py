"""Tells how many lines of each Python package the tests run, and fails below the floor."""

import json
import sys
from collections import Counter
from pathlib import Path

FLOOR = 95.0  # per cent of the lines of each package; branches count in pyproject.toml's fail_under


def main(report: Path) -> int:
    """`report`: of `coverage json`. 1: a package is below the floor, or was not measured."""
    lines: Counter[str] = Counter()
    covered: Counter[str] = Counter()
    for name, file in json.loads(report.read_text("utf-8"))["files"].items():
        package = Path(name).parts[0]
        lines[package] += file["summary"]["num_statements"]
        covered[package] += file["summary"]["covered_lines"]
    below = False
    for package in ("sidecar", "build"):
        percent = 100 * covered[package] / max(1, lines[package])
        print(f"{package}: {percent:.1f} % of {lines[package]} lines are covered; floor {FLOOR} %")
        below |= percent < FLOOR
    return int(below)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
