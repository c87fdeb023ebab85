"""Runs build steps in order and keeps what they write; a step whose key is unchanged is not run.

A step's key covers everything that decides its output: its configuration, the keys of what it
reads, the versions of the tools, and all code that it can reach. Knows no step by name.
"""

import ast
import errno
import json
import os
import shutil
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import cache
from hashlib import file_digest, sha256
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import TypeVar

from huggingface_hub.utils import tqdm

from build.artifacts import TOOLS, Artifact, BuildError, Step

ROOT = Path(__file__).parents[1]
FULL = 1 << 16  # bytes: a disk with less room than that is full
TIMES = "seconds.json"  # in every output: how long the step took when it ran
PICTURES = ("pywavelets", "scikit-image")  # packages that bring them

Tell = Callable[[str], None]
Item = TypeVar("Item")


class Inputs(dict[Artifact, Path]):
    """Where the artefacts lie that a step reads."""

    def progress(self, items: Collection[Item], what: str) -> Iterator[Item]:
        """The items one by one; stderr shows how many are done and how long the rest takes."""
        patience = 0.5 if sys.stderr.isatty() else 10  # a line every ten seconds if nobody watches
        yield from tqdm(items, desc=f"  {what}", mininterval=patience, leave=False)


def run(steps: Sequence[Step], work: Path, tell: Tell) -> dict[Artifact, Path]:
    """Run the steps; where each artefact lies, by the last step that wrote it."""
    paths: dict[Artifact, Path] = {}
    for step, key in zip(steps, keys(steps), strict=True):
        inputs = Inputs({artifact: paths[artifact] for artifact in step.reads})
        paths[step.writes] = _once(step, inputs, work / _name(step, key), tell)
    return paths


def keys(steps: Sequence[Step], root: Path = ROOT) -> list[str]:
    """Each step's key, known before anything is run.

    `root` holds the code. Where a step reads the world outside (a checkpoint), its configuration
    must say what is there: a revision, or a hash.
    """
    versions = json.dumps({name: version(name) for name in (*TOOLS, *PICTURES)})
    written: dict[Artifact, str] = {}
    chain = []
    for step in steps:
        parts = (versions, code(type(step).__module__, root), type(step).__qualname__, repr(step))
        digest = sha256("\n".join(parts).encode())
        for artifact in step.reads:
            digest.update(f"\n{artifact} {written[artifact]}".encode())
        chain.append(digest.hexdigest()[:16])
        written[step.writes] = chain[-1]
    return chain


@cache
def code(module: str, root: Path = ROOT) -> str:
    """A hash of a module's file and of all files under `root` that its imports lead to.

    A module that uses ctypes counts with the libraries in its folder and below: the custom ops.
    Cached, so that an edit during a build does not mix two states of the code.
    """
    digest = sha256()
    for file in sorted(reachable(module, root)):
        with file.open("rb") as stream:
            content = file_digest(stream, "sha256").hexdigest()
        digest.update(f"{file.relative_to(root).as_posix()} {content}\n".encode())
    return digest.hexdigest()


def reachable(module: str, root: Path = ROOT) -> set[Path]:
    """The files under `root` that decide what `module` does, its own included."""
    files: set[Path] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        file = _source(name, root)
        if file is None or file in files:
            continue
        files.add(file)
        waiting += [name.rpartition(".")[0]] if "." in name else []  # its package's __init__
        package = name if file.name == "__init__.py" else name.rpartition(".")[0]
        imports = set(_imports(file, package))
        waiting += imports
        if "ctypes" in imports:
            files |= {f for f in file.parent.rglob("*") if f.suffix in (".so", ".dylib", ".dll")}
    return files


def clean(steps: Sequence[Step], work: Path) -> None:
    """Delete what `run` left in `work` for this chain."""
    for step, key in zip(steps, keys(steps), strict=True):
        shutil.rmtree(work / _name(step, key), ignore_errors=True)


def times(steps: Sequence[Step], work: Path) -> dict[str, float]:
    """By step: the seconds that it took when it ran."""
    seconds: dict[str, float] = {}
    for step, key in zip(steps, keys(steps), strict=True):
        seconds |= json.loads((work / _name(step, key) / TIMES).read_text("utf-8"))
    return seconds


def _source(name: str, root: Path) -> Path | None:
    path = root.joinpath(*name.split("."))
    candidates = (path.with_suffix(".py"), path / "__init__.py")
    return next((file for file in candidates if file.is_file()), None)


def _imports(file: Path, package: str) -> Iterator[str]:
    """Every module that the file may import, wherever in it; of `from a import b` both readings."""
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _title(step: Step) -> str:
    return type(step).__name__.lower()


def _name(step: Step, key: str) -> str:
    return f"{_title(step)}-{key}"


def _once(step: Step, inputs: Inputs, done: Path, tell: Tell) -> Path:
    title = _title(step)
    if done.exists():
        tell(f"{title}: unchanged, taken from {done.parent}")
        return done
    partial = done.with_name(done.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    tell(f"{title} …")
    start = perf_counter()
    try:
        step(inputs, partial)
    except BaseException as error:
        full = shutil.disk_usage(partial).free < FULL
        shutil.rmtree(partial)  # what failed may be what filled the disk
        if full and isinstance(error, Exception) and not isinstance(error, BuildError):
            # safetensors and numpy's tofile do not say so by errno.
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        raise
    seconds = round(perf_counter() - start, 1)
    (partial / TIMES).write_text(json.dumps({title: seconds}), "utf-8")
    partial.rename(done)  # a crash leaves a .partial, never half an output
    tell(f"{title}: {seconds:.1f} s")
    return done
