"""Run build steps in order. Each reads one directory and writes another; none looks back."""

import errno
import json
import os
import shutil
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from time import perf_counter
from typing import Protocol, TypeVar

from huggingface_hub.utils import tqdm

from build.errors import BuildError

FULL = 1 << 16  # bytes: a disk with less room than that is full
TIMES = "seconds.json"  # in every output: how long each step so far took when it ran


class Step(Protocol):
    """A frozen dataclass whose fields are its whole configuration."""

    def __call__(self, source: Path, out: Path) -> None:
        """Read `source`, write only inside the empty directory `out`."""


Tell = Callable[[str], None]
Item = TypeVar("Item")


def run(steps: Sequence[Step], source: Path, work: Path, salt: str, tell: Tell) -> Path:
    """Chain the steps and return the last output. Unchanged steps are not run again.

    The first step's configuration stands for what it reads in `source`. `salt` stands for the code
    and the tools: with another one, nothing is reused.
    """
    for number, step in enumerate(steps):
        name = _name(steps[: number + 1], salt)
        source = _once(step, source, work / name, tell)
    return source


def key(steps: Sequence[Step], salt: str) -> str:
    """What the last output depends on, as a short hash; known before anything is run."""
    digest = sha256(salt.encode())
    for step in steps:
        digest.update(f"\n{step!r}".encode())
    return digest.hexdigest()[:16]


def carry(source: Path, out: Path, *names: str) -> None:
    """Hand files on unchanged to the next step, as copies: onnx_ir refuses weights with links."""
    for name in names:
        if (source / name).exists():
            shutil.copyfile(source / name, out / name)


def progress(items: Collection[Item], what: str) -> Iterator[Item]:
    """The items one by one, while stderr shows how many are done and how long the rest takes."""
    patience = 0.5 if sys.stderr.isatty() else 10  # a line every ten seconds where nobody watches
    yield from tqdm(items, desc=f"  {what}", mininterval=patience, leave=False)


def clean(steps: Sequence[Step], work: Path, salt: str) -> None:
    """Delete what `run` left in `work` for this chain."""
    for number in range(len(steps)):
        shutil.rmtree(work / _name(steps[: number + 1], salt), ignore_errors=True)


def times(output: Path) -> dict[str, float]:
    """Seconds that each step took, of the chain that led to `output`."""
    try:
        found: dict[str, float] = json.loads((output / TIMES).read_text("utf-8"))
    except FileNotFoundError:
        return {}
    return found


def _name(steps: Sequence[Step], salt: str) -> str:
    return f"{type(steps[-1]).__name__.lower()}-{key(steps, salt)}"


def _once(step: Step, source: Path, done: Path, tell: Tell) -> Path:
    title = type(step).__name__.lower()
    if done.exists():
        tell(f"{title}: unchanged, taken from {done.parent}")
        return done
    partial = done.with_name(done.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    tell(f"{title} …")
    start = perf_counter()
    try:
        step(source, partial)
    except BaseException as error:
        full = shutil.disk_usage(partial).free < FULL
        shutil.rmtree(partial)  # what failed may be what filled the disk
        if full and isinstance(error, Exception) and not isinstance(error, BuildError):
            # safetensors and numpy's tofile do not say so by errno.
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        raise
    seconds = round(perf_counter() - start, 1)
    (partial / TIMES).write_text(json.dumps({**times(source), title: seconds}), "utf-8")
    partial.rename(done)  # a crash leaves a .partial, never half an output
    tell(f"{title}: {seconds:.1f} s")
    return done
