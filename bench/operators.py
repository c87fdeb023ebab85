# SPDX-License-Identifier: Apache-2.0
"""The kernels' time on one core, by instruction set; or paired with an older commit's.

    python -m bench.operators [--against COMMIT] [--tokens N ...] [--rounds N]

Both sides' `operators_time` run in turn, in processor time, and the fastest round of each counts,
so that other programs on the machine matter little. Sizes are those of MedGemma's vision tower.
"""

import argparse
import re
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

from bench.figures import number, table
from bench.machine import describe
from bench.profile import program

ROOT = Path(__file__).parents[1]
WORK = ROOT / ".work"
LINE = re.compile(r"^(.+?) +[\d.]+ \(([\d.]+) to [\d.]+\)")
# What older commits called the same.
NAMES = {"AVX3_ZEN4": "AVX512 and VNNI", "AVX3_SPR": "AVX512 and VNNI"}


def parse(output: str) -> dict[str, float]:
    """The fastest milliseconds by name, from what `operators_time` prints."""
    times = {}
    for line in output.splitlines():
        if match := LINE.match(line):
            kind, _, variant = match[1].rpartition(", ")
            times[f"{kind}, {NAMES.get(variant, variant)}"] = float(match[2])
    return times


def fastest(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    """The smaller of both, by name."""
    return {name: min(one.get(name, time), time) for name, time in {**one, **other}.items()}


def build(commit: str) -> Path:
    """`operators_time` of another commit, built in `.work/against`."""
    sources = WORK / "against" / commit
    archive = subprocess.run(
        ["git", "archive", commit, "sidecar/kernels", "tests/kernels", "bench"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        check=True,
    ).stdout
    with tarfile.open(fileobj=BytesIO(archive)) as files:
        files.extractall(sources, filter="data")
    downloads = sources / ".work" / "downloads"
    downloads.parent.mkdir(exist_ok=True)
    if (WORK / "downloads").exists() and not downloads.exists():
        downloads.symlink_to(WORK / "downloads")
    binaries = sources / "build"
    configure = ["cmake", "-Wno-dev", "-S", str(sources / "sidecar" / "kernels")]
    # An option of commits before the programs that measure moved to bench/kernels.
    configure += ["-B", str(binaries), "-DVISION_KERNELS_TESTS=ON"]
    for command in (configure, ["cmake", "--build", str(binaries), "--target", "operators_time"]):
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return next(path for path in binaries.rglob("operators_time") if path.is_file())


def measure(programs: Mapping[str, Path], tokens: int, rounds: int) -> dict[str, dict[str, float]]:
    """The fastest milliseconds of each program, by name; they run in turn."""
    times: dict[str, dict[str, float]] = {title: {} for title in programs}
    for _ in range(rounds):
        for title, path in programs.items():
            output = subprocess.run(
                [str(path), str(tokens), "1"], stdout=subprocess.PIPE, text=True, check=True
            ).stdout
            times[title] = fastest(parse(output), times[title])
    return times


def rows(times: Mapping[str, Mapping[str, float]]) -> list[list[str]]:
    """A row for each operator: milliseconds of each program, and old to new where there are two."""
    *old, new = times.values()
    found = []
    for name, milliseconds in new.items():
        before = [side[name] for side in old if name in side]
        cells = [number(time, 3) for time in (*before, milliseconds)]
        # 0.0: less than is printed.
        ratio = [f"{time / milliseconds:.2f}" if milliseconds else "" for time in before]
        missing = [""] * (len(old) - len(before))
        found.append([name, *missing, *cells, *(ratio or missing)])
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.operators", description=__doc__)
    parser.add_argument("--against", metavar="COMMIT")
    parser.add_argument("--tokens", type=int, nargs="+", default=[4096, 1024, 256])
    parser.add_argument("--rounds", type=int, default=7)
    asked = parser.parse_args()
    machine = describe(1)
    print(f"{machine['cpu']}: {machine['features']}")
    programs = {asked.against: build(asked.against)} if asked.against else {}
    programs["now"] = program("operators_time")
    titles = [f"ms, {title}" for title in programs]
    for tokens in asked.tokens:
        found = rows(measure(programs, tokens, asked.rounds))
        print(f"\n{tokens} tokens, one core\n")
        print(table(("operator", *titles, *(["times as fast"] if asked.against else [])), found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
