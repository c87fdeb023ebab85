"""Mutation tests of the files that pyproject.toml names under tool.mutmut; POSIX only.

    python -m tests.mutants [--sample N] [--seed 0] [--jobs 2] [PATTERN…]

mutmut makes the mutants, in `mutants/`, and keeps the results (`mutmut results`, `mutmut show`).
It would collect the tests anew for each mutant; here pytest collects them and runs them once, and
each mutant runs in a fork of that process, against the tests of its own file (test_NAME.py, and the
golden files) that reach its function: first the one that noticed the last mutant there, then the
fastest. PATTERN selects mutants by name (`sidecar.handshake.*`), `--sample` so many of each file.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import random
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import mutmut.__main__ as mutmut
import pytest
from mutmut.configuration import config
from mutmut.mutation.data import SourceFileMutationData
from mutmut.mutation.trampoline import set_mutant_under_test
from mutmut.state import state
from mutmut.utils.file_utils import copy_also_copy_files, copy_src_dir, setup_source_paths
from mutmut.utils.format_utils import mangled_name_from_mutant_name

ROOT = Path(__file__).parents[1]
SHARED = ("test_golden.py", "test_model_files.py")  # of the wire, and of the manifest
ENOUGH = 0.85  # of a file's mutants have to be noticed
PATIENCE = 10  # times as long as the tests took without a mutant, and
SPARE_S = 20  # so much on top
NOTICED, SURVIVED, NO_TESTS, TIMED_OUT = 1, 0, 33, -24  # as mutmut keeps them
MISSED = {SURVIVED: "survived", NO_TESTS: "no tests"}

Mutants = dict[str, SourceFileMutationData]  # by name, the file that each belongs to


def generate(patterns: list[str], sample: int, seed: int) -> Mutants:
    set_mutant_under_test("mutant_generation")
    Path("mutants").mkdir(exist_ok=True)
    with contextlib.redirect_stdout(io.StringIO()):
        copy_src_dir()
        copy_also_copy_files()
        setup_source_paths()
        mutmut.create_mutants(1)
    found, _ = mutmut.collect_source_file_mutation_data(mutant_names=patterns)
    by_file: dict[Path, Mutants] = defaultdict(dict)
    for data, name, _ in found:
        by_file[Path(data.path)][name] = data
    chance = random.Random(seed)
    chosen: Mutants = {}
    for mutants in by_file.values():
        names = sorted(mutants)
        chosen |= {n: mutants[n] for n in (chance.sample(names, min(sample, len(names))) or names)}
    return chosen


class Run:
    """A pytest plugin: the tests once as they are, then the mutants."""

    def __init__(self, mutants: Mutants, jobs: int) -> None:
        self.results: dict[str, int] = {}
        self._mutants, self._jobs = mutants, jobs
        self._running: dict[int, tuple[str, list[pytest.Item], int]] = {}  # by process
        self._failed = False
        self._seconds: dict[str, float] = defaultdict(float)  # by test
        self._reach: dict[str, list[pytest.Item]] = defaultdict(list)  # by function
        self._noticed: dict[str, pytest.Item] = {}  # by function, what noticed the last mutant

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._failed |= report.failed
        self._seconds[report.nodeid] += report.duration

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        self._reached(session.items)
        assert not self._failed, "a test fails without any mutant"
        for name in self._mutants:
            while len(self._running) == self._jobs:
                self._wait()
            self._start(name)
        while self._running:
            self._wait()
        return True

    def _keep(self, name: str, code: int) -> None:
        self.results[name] = code
        data = self._mutants[name]
        data.exit_code_by_key[name] = code
        with contextlib.chdir(ROOT):
            data.save()
        if code != NOTICED:
            what = MISSED.get(code, f"ended by {code}")
            print(f"\n{len(self.results)} of {len(self._mutants)}: {name} {what}", flush=True)

    def _reached(self, items: list[pytest.Item]) -> None:
        """Run all tests, and note which functions each calls in this process."""
        set_mutant_under_test("stats")
        for item in _one_by_one(items):
            for function in state()._stats:
                if item.path.name in _tests(function):
                    self._reach[function].append(item)
            state()._stats.clear()

    def _start(self, name: str) -> None:
        function = mangled_name_from_mutant_name(name)
        tests = sorted(self._reach[function], key=lambda item: self._seconds[item.nodeid])
        if not tests:
            self._keep(name, NO_TESTS)
            return
        if function in self._noticed:
            tests.insert(0, self._noticed[function])
        expected = sum(self._seconds[item.nodeid] for item in tests)
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            self._be_the_mutant(name, tests, int(expected * PATIENCE + SPARE_S), writer)
        os.close(writer)
        self._running[pid] = name, tests, reader

    def _wait(self) -> None:
        """For one of them."""
        pid, status = os.wait()
        if pid not in self._running:  # a test left it behind
            return
        name, tests, reader = self._running.pop(pid)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)  # what it started
        os.set_blocking(reader, False)
        with contextlib.suppress(BlockingIOError):
            if told := os.read(reader, 9):
                self._noticed[mangled_name_from_mutant_name(name)] = tests[int(told)]
        os.close(reader)
        code = os.waitstatus_to_exitcode(status)
        self._keep(name, TIMED_OUT if code == -signal.SIGALRM else code)

    def _be_the_mutant(
        self, name: str, tests: list[pytest.Item], seconds: int, noticed: int
    ) -> NoReturn:
        """Run the tests until one fails, and write its number to the descriptor `noticed`."""
        os.setpgid(0, 0)
        signal.alarm(seconds)
        nothing = os.open(os.devnull, os.O_RDWR)
        for descriptor in (1, 2):
            os.dup2(nothing, descriptor)
        set_mutant_under_test(name)
        for number, _ in enumerate(_one_by_one(tests)):
            if self._failed:
                os.write(noticed, str(number).encode())
                os._exit(NOTICED)
        os._exit(SURVIVED)


def _tests(name: str) -> tuple[str, ...]:
    """The test files of the module that a mutant or a function is in."""
    return f"test_{name.split('.')[1]}.py", *SHARED


def _one_by_one(items: list[pytest.Item]) -> Iterator[pytest.Item]:
    """Each after it was run; what tests share is left as it is after the last."""
    for item, following in zip(items, [*items[1:], items[0]], strict=True):
        item.ihook.pytest_runtest_protocol(item=item, nextitem=following)
        yield item


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("patterns", nargs="*", metavar="PATTERN")
    parser.add_argument("--sample", type=int, default=0, help="of each file; default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="mutants at a time")
    chosen = parser.parse_args()
    begun = time.monotonic()
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # a process with more may hang as it forks
    mutants = generate(chosen.patterns, chosen.sample, chosen.seed)
    run = Run(mutants, chosen.jobs)
    files = {file for name in mutants for file in _tests(name)}
    tests = [t for t in config().pytest_add_cli_args_test_selection if Path(t).name in files]
    os.chdir("mutants")
    ended = pytest.main(
        ["--rootdir=.", "-q", "-s", *config().pytest_add_cli_args, *tests], plugins=[run]
    )
    by_file: dict[str, Counter[int]] = defaultdict(Counter)
    for name, code in run.results.items():
        by_file[name.rpartition(".")[0]][code] += 1
    enough = ended == pytest.ExitCode.OK and bool(by_file)
    for file, codes in by_file.items():
        missed = codes[SURVIVED] + codes[NO_TESTS]
        share = 1 - missed / codes.total()
        enough &= share >= ENOUGH
        timed_out = f", {codes[TIMED_OUT]} of them by running too long" if codes[TIMED_OUT] else ""
        print(
            f"{file}: {codes.total() - missed} of {codes.total()} noticed ({share:.1%}){timed_out}"
        )
    print(f"{time.monotonic() - begun:.0f} s")
    return 0 if enough else 1


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # threads that a test left behind may wait for ever
