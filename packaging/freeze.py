"""Freeze the sidecar into `dist/vision-sidecar/`, in an environment that holds nothing else.

    python packaging/freeze.py

Needs only the standard library; everything else is installed, locked, into `.work/freeze-venv`.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements" / "freeze.txt"
VENV = ROOT / ".work" / "freeze-venv"
WORK = ROOT / ".work" / "pyinstaller"
FRESH = ROOT / ".work" / "frozen"
BUNDLE = ROOT / "dist" / "vision-sidecar"

MEGABYTE = 10**6
LARGEST_BUNDLE = 120 * MEGABYTE
LARGEST_ARCHIVE = 45 * MEGABYTE
SHOWN = 12
STRIPPED = ("libpython*.so*", "python3*/lib-dynload/*.so", "msgpack/*.so")


def environment() -> Path:
    """The Python of the freezing environment; made anew when the lock or this Python changed."""
    python = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    stamp = VENV / ".locked"
    wanted = f"{sys.version}\n{hashlib.sha256(LOCK.read_bytes()).hexdigest()}\n"
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    shutil.rmtree(VENV, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "-qq", "install"]
    locked = ["--require-hashes", "--only-binary", ":all:", "--requirement", str(LOCK)]
    subprocess.run(pip + locked, check=True)
    stamp.write_text(wanted)
    return python


def freeze(python: Path) -> Path:
    """Run PyInstaller; the new bundle, not yet in its place."""
    shutil.rmtree(FRESH, ignore_errors=True)
    command = [str(python), "-m", "PyInstaller", "--noconfirm", "--clean", "--log-level", "WARN"]
    places = ["--workpath", str(WORK), "--distpath", str(FRESH), str(ROOT / "pyinstaller.spec")]
    # A fixed seed and date, so that the same sources give the same archives.
    fixed = {"PYTHONHASHSEED": "0", "SOURCE_DATE_EPOCH": "1577836800"}
    subprocess.run(command + places, check=True, cwd=ROOT, env=os.environ | fixed)
    return FRESH / BUNDLE.name


def run(python: Path, script: str, *args: Path) -> None:
    """Run a script beside this one in the freezing environment."""
    subprocess.run([str(python), str(ROOT / "packaging" / script), *map(str, args)], check=True)


def strip_symbols(bundle: Path) -> None:
    """Take the symbols out of Python and msgpack; out of numpy's OpenBLAS it would break it."""
    for pattern in STRIPPED:
        for library in bundle.glob(f"_internal/{pattern}"):
            if not library.is_symlink():
                subprocess.run(["strip", str(library)], check=True)


def size(bundle: Path) -> int:
    """Bytes of all regular files in `bundle`."""
    return sum(p.stat().st_size for p in bundle.rglob("*") if p.is_file() and not p.is_symlink())


def archive(bundle: Path) -> Path:
    """`bundle` as a tar.gz beside it, named for this system."""
    name = f"vision-sidecar-{platform.system().lower()}-{platform.machine().lower()}.tar.gz"
    path = bundle.parent / name
    with tarfile.open(path, "w:gz") as tar:
        tar.add(bundle, bundle.name)
    return path


def place(fresh: Path) -> None:
    """Put the new bundle where the old one was, which may still be running."""
    BUNDLE.parent.mkdir(exist_ok=True)
    old = FRESH / "old"
    if BUNDLE.exists():
        BUNDLE.rename(old)
    fresh.rename(BUNDLE)
    shutil.rmtree(FRESH, ignore_errors=True)


def report(packed: Path) -> bool:
    """Print the largest files and both totals; whether the totals are within bounds."""
    rows = [
        (path.stat().st_size, path.relative_to(BUNDLE).as_posix())
        for path in BUNDLE.rglob("*")
        if path.is_file() and not path.is_symlink()
    ]
    print(f"{'MB':>7}  largest files of {len(rows)} in {BUNDLE.relative_to(ROOT)}")
    for count, name in sorted(rows, reverse=True)[:SHOWN]:
        print(f"{count / MEGABYTE:7.1f}  {name}")
    total, compressed = size(BUNDLE), packed.stat().st_size
    print(f"{total / MEGABYTE:7.1f}  in all, of at most {LARGEST_BUNDLE / MEGABYTE:.0f}")
    print(
        f"{compressed / MEGABYTE:7.1f}  as {packed.relative_to(ROOT)}, "
        f"of at most {LARGEST_ARCHIVE / MEGABYTE:.0f}"
    )
    return total <= LARGEST_BUNDLE and compressed <= LARGEST_ARCHIVE


def main() -> int:
    """Freeze, tidy, check, and only then replace the last bundle."""
    python = environment()
    fresh = freeze(python)
    if sys.platform == "linux":
        strip_symbols(fresh)
        run(python, "scrub.py", fresh)
    run(python, "licences.py", fresh)
    run(python, "contents.py", fresh)
    place(fresh)
    if not report(archive(BUNDLE)):
        print("The bundle is larger than its bound: see what is new in the table above.")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
