"""Builds the kernels with CMake and puts the library where the sidecar looks for it.

Where that is not possible, as without a compiler, one line says why, and the sidecar runs without.
"""

import shutil
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parent
WORK = SOURCE.parents[1] / ".work" / "kernels"
NAMES = ("vision_kernels.so", "vision_kernels.dylib", "vision_kernels.dll")


def main() -> int:
    log = WORK / "log.txt"
    try:
        library = build(log)
    except FileNotFoundError:
        print("kernels: left out, since there is no cmake (3.24 or later) on this machine")
    except subprocess.CalledProcessError:
        print(f"kernels: left out, since CMake could not build them; {log} says why")
    else:
        # Replaced, never overwritten: a sidecar may be running from the old one.
        staged = SOURCE / f"{library.name}.new"
        shutil.copyfile(library, staged)
        staged.replace(SOURCE / library.name)
        print(f"kernels: built {SOURCE / library.name}")
    return 0


def build(log: Path) -> Path:
    WORK.mkdir(parents=True, exist_ok=True)
    configure = ["cmake", "-Wno-dev", "-S", str(SOURCE), "-B", str(WORK)]
    compile_ = ["cmake", "--build", str(WORK), "--config", "Release", "--parallel", "2"]
    with log.open("wb") as stream:
        for command in (configure, [*compile_, "--target", "vision_kernels"]):
            subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, check=True)
    (library,) = (path for name in NAMES for path in WORK.rglob(name))
    return library


if __name__ == "__main__":
    sys.exit(main())
