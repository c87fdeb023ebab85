"""The command line: a checkpoint becomes a model directory, with progress.

`build` is the same from Python. Settings are read here only.
"""

import argparse
import errno
import json
import logging
import os
import shutil
import sys
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import file_digest
from pathlib import Path

ROOT = Path(__file__).parents[1]
WORK = ROOT / ".work" / "build"
CACHE = ROOT / ".cache"

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
# PyTorch's threads spin while they wait. On a machine with other work they spin until the ones that
# they wait for get a core, which made small products 14 times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from build import demo, pipeline, plots  # noqa: E402
from build.artifacts import (  # noqa: E402
    REPORT,
    REPORT_HTML,
    ZIP,
    ZIP_FACTS,
    Artifact,
    BuildError,
)
from build.checkpoint import locate  # noqa: E402
from build.recipes import RECIPES, Choice  # noqa: E402
from sidecar import malloc, manifest, model_files  # noqa: E402
from sidecar.errors import ModelInvalid  # noqa: E402

# After the import of torch, which sets levels of its own: its exporter warns of nothing of ours.
logging.getLogger("torch.onnx").setLevel(logging.ERROR)

KEY = "key"  # in the report: what the model was built from, to see whether it must be built again


def build(
    source: str,
    out: Path,
    recipe: str = "default",
    choice: Choice | None = None,
    *,
    revision: str | None = None,
    work: Path = WORK,
    keep_work: bool = False,
    tell: pipeline.Tell = lambda _: None,
) -> None:
    """Make the model directory `out`, which appears all at once. Raises BuildError.

    Some recipes write a zip file of it, too, beside it: `zip_of(out)`.
    """
    choice = choice or Choice()
    refuse_strangers(out)
    out.parent.mkdir(parents=True, exist_ok=True)  # now, not after half an hour of work
    if not os.access(out.parent, os.W_OK):
        raise BuildError(
            f"expected to write into {out.parent}, which is not allowed. Choose another --out."
        )
    if source == "demo":
        first = replace(
            locate(str(demo.checkpoint(CACHE, pipeline.code(demo.__name__), tell))), model_id="demo"
        )
    else:
        first = locate(source, revision)
    steps = (first, *RECIPES[recipe](choice))
    key = pipeline.keys(steps)[-1]
    zipped = any(step.writes == Artifact.ARCHIVE for step in steps)
    if zipped:
        refuse_strange_zip(out)
    if _is_current(out, key, zipped):
        tell(f"{out} is up to date")
        return
    made = pipeline.run(steps, work, tell)
    notes: dict[str, object] = {"seconds": pipeline.times(steps, work), KEY: key}
    if zipped:
        archive = made[Artifact.ARCHIVE]
        notes["zip"] = json.loads((archive / ZIP_FACTS).read_text("utf-8"))
        copy_whole(archive / ZIP, zip_of(out))
    place(made, out, notes)
    if not keep_work:
        pipeline.clean(steps, work)
    if choice.share:
        tell(f"validated on {choice.share} images; without --images, on all")
    tell(f"{out} is ready")


def place(made: Mapping[Artifact, Path], out: Path, notes: Mapping[str, object]) -> None:
    """Put the model directory together beside `out`, then rename: it is there whole or not at all.

    `notes` join the report.
    """
    scratch = out.with_name(f".{out.name}.partial")
    shutil.rmtree(scratch, ignore_errors=True)  # left by a build that was killed here
    fresh, old = scratch / "new", scratch / "old"
    described = made[Artifact.MANIFEST]
    try:
        fresh.mkdir(parents=True)
        for name in (*manifest.read(described).files, manifest.NAME):
            source = next(path / name for path in made.values() if (path / name).exists())
            shutil.copyfile(source, fresh / name)
        report = json.loads((described / REPORT).read_text("utf-8"))
        report |= dict(notes)
        (fresh / REPORT).write_text(json.dumps(report, indent=2) + "\n", "utf-8")
        (fresh / REPORT_HTML).write_text(plots.page([report]), "utf-8")
        if out.exists():
            out.rename(old)
        try:
            fresh.rename(out)
        except OSError:
            if old.exists():
                old.rename(out)
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def zip_of(out: Path) -> Path:
    """The zip file beside a model directory."""
    return out.with_name(out.name + ".zip")


def copy_whole(source: Path, target: Path) -> None:
    """Copy beside `target`, then rename: it is there whole or not at all."""
    partial = target.with_name(f".{target.name}.partial")
    try:
        shutil.copyfile(source, partial)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def refuse_strange_zip(out: Path) -> None:
    """Raises BuildError where the file that a zip file would replace is not one of a model."""
    path = zip_of(out)
    if not path.exists():
        return
    try:
        with zipfile.ZipFile(path) as archive:
            archive.getinfo(manifest.NAME)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise BuildError(
            f"{path} is not the zip file of a model, and this recipe would replace it. Move it "
            "away, or choose another --out."
        ) from error


def refuse_strangers(out: Path) -> None:
    """Raises BuildError where `out` holds anything that a build did not put there."""
    if not out.exists():
        return
    if not out.is_dir():
        raise BuildError(f"expected {out} to be a directory or not to exist, found a file.")
    present = {file.name for file in out.iterdir()}
    if not present:
        return
    try:
        ours = {*manifest.read(out).files, manifest.NAME, REPORT, REPORT_HTML}
    except ModelInvalid as error:
        raise BuildError(
            f"{out} is not empty and not a model directory. Choose another --out, or empty it."
        ) from error
    if present - ours:
        raise BuildError(
            f"{out} holds {min(present - ours)} beside a model. Move it away, or choose another "
            "--out: a build replaces the whole directory."
        )


def _is_current(out: Path, key: str, zipped: bool) -> bool:
    try:
        report = json.loads((out / REPORT).read_text("utf-8"))
        if report.get(KEY) != key:
            return False
        model_files.load(out)
        if zipped:
            with zip_of(out).open("rb") as file:
                return bool(file_digest(file, "sha256").hexdigest() == report["zip"]["sha256"])
    except (OSError, ValueError, LookupError, ModelInvalid):
        return False
    return True


def explain(error: OSError, work: Path) -> str:
    """What to tell the person at the terminal."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"the disk is full. Make room on the disks of {work} and of --out, or point --work at "
            "another one, and run this again: it goes on where it stopped."
        )
    return f"{error.strerror or error}: {error.filename}" if error.filename else str(error)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m build", description=__doc__)
    parser.add_argument("source", help="a directory in Hugging Face format, a hub id, or demo")
    parser.add_argument("--out", type=Path, required=True, help="the model directory to make")
    parser.add_argument("--recipe", choices=sorted(RECIPES), default="default")
    parser.add_argument("--projection", choices=("projector", "linear"))
    parser.add_argument("--revision", help="of a hub id: a branch, tag or commit")
    parser.add_argument("--calibrate", type=Path, metavar="DIR", help="your own images")
    parser.add_argument("--work", type=Path, default=WORK, help="for intermediate files")
    parser.add_argument("--keep-work", action="store_true", help="do not delete them afterwards")
    parser.add_argument(
        "--bar", action="append", default=[], metavar="NAME=VALUE", help="in place of the recipe's"
    )
    parser.add_argument(
        "--images", type=int, metavar="N", help="validate on fewer images, which is quicker"
    )
    parser.add_argument(
        "--test", action="store_true", help="measure it on the test set too, which decides nothing"
    )
    parser.add_argument("--no-bars", action="store_true", help="report, whatever the figures are")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0, or 1 after one clear sentence."""
    warnings.filterwarnings("ignore")
    malloc.return_large_blocks()  # a step's memory goes before the next one begins
    options = _arguments(argv)
    try:
        choice = Choice.parse(
            options.projection,
            options.calibrate,
            options.bar,
            options.no_bars,
            options.images,
            options.test,
        )
        build(
            options.source,
            options.out,
            options.recipe,
            choice,
            revision=options.revision,
            work=options.work,
            keep_work=options.keep_work,
            tell=lambda line: print(line, flush=True),
        )
    except BuildError as error:
        print(f"build: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"build: {explain(error, options.work)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("build: interrupted. Run it again to go on where it stopped.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
