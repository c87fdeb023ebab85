"""What a frozen bundle holds, and a check that it holds nothing of the machine that built it.

Runs in the freezing environment, whose PyInstaller can read its own archives:

    .work/freeze-venv/bin/python packaging/contents.py dist/vision-sidecar
"""

from __future__ import annotations

import re
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from pathlib import Path

from PyInstaller.archive.readers import CArchiveReader, ZlibArchiveReader

ROOT = Path(__file__).resolve().parents[1]
BUILD_TIME_ONLY = {"build", "onnx", "onnxscript", "tensorflow", "torch", "transformers"}
# Where Python lies on many machines, so that it tells nothing of this one.
COMMON_PREFIX = r"/usr|/usr/local|/Library/Frameworks/Python\.framework/.*"
PACKAGES = Path(sysconfig.get_path("purelib"))


def executable(bundle: Path) -> Path:
    """The program inside `bundle`."""
    return bundle / ("vision-sidecar.exe" if sys.platform == "win32" else "vision-sidecar")


def files(bundle: Path) -> list[Path]:
    """Every regular file in `bundle`, links left out, in a stable order."""
    return sorted(path for path in bundle.rglob("*") if path.is_file() and not path.is_symlink())


def modules(bundle: Path) -> dict[str, bytes]:
    """Every frozen Python module and its bytecode, by dotted name."""
    archive = CArchiveReader(str(executable(bundle))).open_embedded_archive("PYZ.pyz")
    assert isinstance(archive, ZlibArchiveReader)
    return {name: archive.extract(name, raw=True) or b"" for name in archive.toc}


def blobs(bundle: Path) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of every file made here, and of what the archives among them hold."""
    for path in made_here(bundle):
        yield path.relative_to(bundle).as_posix(), path.read_bytes()
        if zipfile.is_zipfile(path) and path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                yield from (
                    (f"{path.name}/{name}", archive.read(name)) for name in archive.namelist()
                )
    scripts = CArchiveReader(str(executable(bundle)))
    yield from ((f"script {name}", scripts.extract(name)) for name in scripts.toc)
    yield from ((f"module {name}", code) for name, code in modules(bundle).items())


def made_here(bundle: Path) -> list[Path]:
    """The files that do not come out of a downloaded wheel, so that they may know this machine."""
    internal = bundle / "_internal"
    return [
        path
        for path in files(bundle)
        if not (path.is_relative_to(internal) and (PACKAGES / path.relative_to(internal)).exists())
    ]


def machine_paths() -> list[str]:
    """Places on this machine that no other machine should learn of: the longest first."""
    built = (sysconfig.get_config_var(name) for name in ("abs_srcdir", "abs_builddir"))
    places = {str(ROOT), str(Path.home()), *(str(place) for place in built if place)}
    if not re.fullmatch(COMMON_PREFIX, sys.base_prefix):
        places.add(sys.base_prefix)
    return sorted(places - {"/"}, key=lambda place: (-len(place), place))


def machine_path_pattern() -> re.Pattern[bytes]:
    """Matches a machine path where one starts, and not inside another machine's longer path."""
    alternatives = b"|".join(re.escape(place.encode()) for place in machine_paths())
    return re.compile(rb"(?<![\w.-])(?:" + alternatives + rb")(?![\w.-])")


def faults(bundle: Path) -> list[str]:
    """One sentence for each thing that must not be there."""
    found = [
        f"the module {name} is needed at build time only; exclude it in pyinstaller.spec"
        for name in modules(bundle)
        if name.split(".")[0] in BUILD_TIME_ONLY
    ]
    found += [
        f"the file {path.relative_to(bundle)} belongs to a package needed at build time only"
        for path in files(bundle)
        if BUILD_TIME_ONLY & set(path.relative_to(bundle).parts)
    ]
    pattern = machine_path_pattern()
    for name, data in blobs(bundle):
        match = pattern.search(data)
        if match:
            found.append(
                f"{name} tells a path of this machine, {match[0].decode()}; "
                "freeze with a Python, or in a folder, that lies elsewhere"
            )
    return found


def main() -> int:
    """Print what is wrong with the bundle in argv, if anything."""
    bundle = Path(sys.argv[1])
    found = faults(bundle)
    print("\n".join(found) or f"{bundle}: {len(modules(bundle))} modules, no fault", flush=True)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
