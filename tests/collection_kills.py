"""Kills a process in the middle of adding and removing cases, and looks at what it left.

    python -m tests.collection_kills [--count 500]

Every acknowledged change must be there, no case half, none twice. A change that was on its way when
the kill came may be there or not.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from sidecar.case_store import About
from sidecar.collection import Collection, Vectors

ROOT = Path(__file__).resolve().parents[1]
DIMS = 64
ABOUT = About("0" * 64, "projector", (448, 448), DIMS)
CASES = 120  # ids in use; each is added, and removed at the next turn


def vectors(id: str) -> Vectors:
    """Always the same for the same id."""
    draws = np.random.default_rng(list(id.encode()))
    tokens = draws.normal(size=(256, DIMS)).astype(np.float32)
    return Vectors.of(tokens.mean(0), tokens)


def change_for_ever(path: Path, seed: int) -> None:
    """Say each change before and after it is done."""
    draws = random.Random(seed)
    collection = Collection.open(path, ABOUT, create=True)
    present = {case.id for case in collection.store.cases()}
    turn = 0
    while True:
        id = f"case {draws.randrange(CASES)}"
        sign = "-" if id in present else "+"
        sys.stdout.write(f"?{sign}{id}\n")
        sys.stdout.flush()
        if sign == "+":
            collection.add(id, vectors(id), {"of": id, "long": "x" * draws.randrange(2000)})
            present.add(id)
        else:
            collection.remove(id)
            present.remove(id)
        sys.stdout.write(f"!{sign}{id}\n")
        sys.stdout.flush()
        turn += 1
        if turn % 7 == 0:  # so that kills hit the change of the journal's mode too
            collection.close()
            collection = Collection.open(path, ABOUT, create=True)


def kill_once(path: Path, expected: set[str], draws: random.Random) -> set[str]:
    """One process, killed after a random number of lines; the ids that are there after it."""
    words = [sys.executable, "-m", "tests.collection_kills", "--path", str(path)]
    words += ["--seed", str(draws.randrange(2**32))]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        lines = [child.stdout.readline() for _ in range(draws.randrange(1, 60))]
        child.send_signal(signal.SIGKILL)
        lines += child.stdout.readlines()
    sure, open_change = set(expected), ""
    for line in lines:
        if not line.endswith("\n"):
            break
        mark, sign, id = line[0], line[1], line[2:-1]
        if mark == "!":
            (sure.add if sign == "+" else sure.discard)(id)
        open_change = id if mark == "?" else ""
    return _check(path, sure, open_change)


def _check(path: Path, sure: set[str], open_change: str) -> set[str]:
    if not path.exists():
        assert not sure
        return set()
    collection = Collection.open(path, ABOUT, create=True)
    cases = list(collection.store.cases())
    ids = {case.id for case in cases}
    assert len(ids) == len(cases), "a case is there twice"
    assert ids - {open_change} == sure - {open_change}, "an acknowledged change is lost"
    for case in cases:
        assert not collection.add(case.id, vectors(case.id), json.loads(case.metadata)), (
            "a case is not what was added"
        )
    if cases:
        collection.search(vectors(cases[0].id), k=len(cases), regions=True)  # reads everything
    collection.close()
    beside = [name.name for name in path.parent.iterdir() if name != path]
    assert not beside, f"{beside} is left beside it"
    return ids


def run(count: int, folder: Path, seed: int = 0) -> int:
    """Kill `count` times; the number of cases at the end. Raises AssertionError."""
    draws = random.Random(seed)
    expected: set[str] = set()
    for number in range(1, count + 1):
        expected = kill_once(folder / "cases", expected, draws)
        if number % 50 == 0:
            print(f"{number} kills, {len(expected)} cases", file=sys.stderr, flush=True)
    return len(expected)


def main() -> int:
    """The parent, or with --path the child."""
    parser = argparse.ArgumentParser(prog="python -m tests.collection_kills", description=__doc__)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--path", type=Path)
    options = parser.parse_args()
    if options.path is not None:
        change_for_ever(options.path, options.seed)
    with tempfile.TemporaryDirectory() as folder:
        left = run(options.count, Path(folder), options.seed)
    print(f"{options.count} kills: nothing acknowledged was lost; {left} cases at the end")
    return 0


if __name__ == "__main__":
    sys.exit(main())
