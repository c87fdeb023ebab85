# SPDX-License-Identifier: Apache-2.0
"""Builds the kernels with CMake and puts the library where the sidecar looks for it.

    python sidecar/kernels/make.py [--required]

Without CMake or a C++ compiler, one line says so and the sidecar runs without kernels; with
`--required` that is an error. Only the standard library may be imported here.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parent
WORK = SOURCE.parents[1] / ".work" / "kernels"
NAMES = ("vision_kernels.so", "vision_kernels.dylib", "vision_kernels.dll")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--required", action="store_true", help="fail if they cannot be built")
    required = parser.parse_args().required
    log = WORK / "log.txt"
    try:
        build(log)
    except FileNotFoundError:
        print("kernels: not built, since this machine has no cmake (3.24 or later)")
        return int(required)
    except subprocess.CalledProcessError:
        print(f"kernels: not built, since CMake failed; {log} says why")
        if required:
            print(log.read_text("utf-8", errors="replace"), file=sys.stderr)
        return int(required)
    (library,) = (path for name in NAMES for path in WORK.rglob(name))
    # Replaced, never overwritten: a sidecar may be running from the old one.
    staged = SOURCE / f"{library.name}.new"
    shutil.copyfile(library, staged)
    staged.replace(SOURCE / library.name)
    print(f"kernels: built {SOURCE / library.name}")
    return 0


def build(log: Path, target: str = "vision_kernels") -> None:
    """Configure and build one target in WORK.

    Raises FileNotFoundError without cmake, CalledProcessError if it fails; `log` has its output.
    """
    WORK.mkdir(parents=True, exist_ok=True)
    configure = ["cmake", "-Wno-dev", "-S", str(SOURCE), "-B", str(WORK)]
    compile_ = ["cmake", "--build", str(WORK), "--config", "Release", "--parallel", "2"]
    with log.open("wb") as stream:
        for command in (configure, [*compile_, "--target", target]):
            subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, check=True)


if __name__ == "__main__":
    sys.exit(main())
