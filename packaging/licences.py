"""Write a bundle's `THIRD_PARTY_LICENSES.txt`: the terms of everything that is frozen into it.

Runs in the freezing environment, so that the texts are those of the very packages that were frozen:

    .work/freeze-venv/bin/python packaging/licences.py dist/vision-sidecar
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from contents import files, modules

NOTICES = Path(__file__).resolve().parent / "notices"
NAME = "THIRD_PARTY_LICENSES.txt"
RULE = "=" * 78
LICENCE_FILE = re.compile(
    r"(^|/)(licen[cs]e|copying|notice|thirdpartynotices)[^/]*$", re.IGNORECASE
)


class Part(NamedTuple):
    """Something frozen: its name and version, its licence in a word or two, and the full texts."""

    title: str
    licence: str
    texts: list[str]


class NoLicence(Exception):
    """Something is frozen whose terms are not at hand."""


def distributions(bundle: Path) -> Iterator[Part]:
    """Every installed package of which the bundle holds a module or a library."""
    frozen = {path.relative_to(bundle / "_internal").as_posix() for path in internal(bundle)}
    frozen |= {name.replace(".", "/") for name in modules(bundle)}
    for dist in metadata.distributions():
        listed = {re.sub(r"(/__init__)?\.pyc?$", "", file.as_posix()) for file in dist.files or ()}
        if listed & frozen:
            yield part(dist)


def part(dist: metadata.Distribution) -> Part:
    """Name, licence and texts of one package, from its own metadata. Raises NoLicence."""
    title = f"{dist.metadata['Name']} {dist.version}"
    paths = sorted(file.as_posix() for file in dist.files or () if LICENCE_FILE.search(str(file)))
    texts = dict.fromkeys(Path(str(dist.locate_file(path))).read_text("utf-8") for path in paths)
    if not texts:
        raise NoLicence(f"{title} carries no licence text; add it by hand before shipping.")
    # A licence expression where the package gives one, else the old field's first line.
    fields = dist.metadata.json
    terms = str(fields.get("license_expression") or fields.get("license") or "see below")
    return Part(title, terms.splitlines()[0], list(texts))


def interpreter() -> Part:
    """Python itself, whose licence file lies with its standard library."""
    version = ".".join(map(str, sys.version_info[:3]))
    here = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    candidates = [
        Path(sys.base_prefix) / "lib" / here / "LICENSE.txt",
        Path(sys.base_prefix) / "LICENSE.txt",
        Path("/usr/share/doc") / here / "copyright",
    ]
    for path in candidates:
        if path.exists():
            return Part(f"Python {version}", "PSF-2.0", [path.read_text("utf-8")])
    raise NoLicence(f"Python {version}: no licence file at {', '.join(map(str, candidates))}.")


def bootloader() -> Part:
    """PyInstaller's start program, which is in every bundle though no module of it is."""
    return part(metadata.distribution("pyinstaller"))


def kernels(bundle: Path) -> Iterator[Part]:
    """What is compiled into our native kernels, where the bundle has them."""
    if any(bundle.glob("_internal/sidecar/kernels/*")):
        yield compiled_in("Highway", "BSD-3-Clause", "highway.txt")
        if sys.platform == "linux":  # elsewhere the C++ runtime is the system's
            terms = "GPL-3.0-or-later WITH GCC-exception-3.1"
            yield compiled_in("GCC's runtime libraries", terms, "gcc-runtime.txt")


def fonts(bundle: Path) -> Iterator[Part]:
    """What the heatmap's legend is written in; its terms lie beside it."""
    for terms in bundle.glob("_internal/sidecar/fonts/LICENSE.txt"):
        title = "DejaVu Sans 2.37, some of its letters"
        yield Part(title, "Bitstream-Vera", [terms.read_text("utf-8")])


def compiled_in(name: str, licence: str, notice: str) -> Part:
    """A part of vision_kernels, with the text that we keep of its terms."""
    text = (NOTICES / notice).read_text("utf-8")
    return Part(f"{name}, inside vision_kernels", licence, [text])


def system_libraries(bundle: Path) -> Iterator[Part]:
    """The Debian packages that gave the bundle shared libraries from this system, if it is one."""
    dpkg = shutil.which("dpkg-query")
    if dpkg is None:
        return
    names = {path.name for path in internal(bundle) if path.parent.name == "_internal"}
    names = {name for name in names if not name.startswith("libpython")}  # see interpreter()
    own = {"/lib", f"/lib/{sysconfig.get_config_var('MULTIARCH')}"}  # not a cross compiler's
    packages: dict[str, list[str]] = {}
    for name in sorted(names):
        found = subprocess.run([dpkg, "--search", f"*/{name}"], capture_output=True, text=True)
        for line in found.stdout.splitlines():
            package, _, path = line.partition(": ")
            if str(Path(path).parent).removeprefix("/usr") in own:
                packages.setdefault(package.split(":")[0], []).append(name)
    for package, libraries in packages.items():
        text = Path("/usr/share/doc") / package / "copyright"
        yield Part(f"{package} ({', '.join(libraries)})", "see below", [text.read_text("utf-8")])


def internal(bundle: Path) -> list[Path]:
    """The bundle's files beside its program."""
    return [path for path in files(bundle) if "_internal" in path.parts]


def main() -> int:
    """Write the file into the bundle in argv."""
    bundle = Path(sys.argv[1])
    parts = sorted(distributions(bundle), key=lambda part: part.title.lower())
    parts = [interpreter(), bootloader(), *parts, *kernels(bundle)]
    parts += [*fonts(bundle), *system_libraries(bundle)]
    out = ["vision-sidecar is frozen together with the software below.", ""]
    out += [f"- {part.title}: {part.licence}" for part in parts]
    for each in parts:
        out += ["", RULE, each.title, RULE, "", *(text.strip() + "\n" for text in each.texts)]
    (bundle / NAME).write_text("\n".join(out) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
