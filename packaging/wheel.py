"""Hatch's build hook: the wheel carries the compiled kernels, and its tag says for which platform.

Without a C++ compiler the wheel is a pure one, and the program uses ONNX Runtime's own operators.
"""

import re
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

KERNELS = Path("sidecar", "kernels")


class KernelsHook(BuildHookInterface[Any]):
    """Found by Hatch through pyproject.toml."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            return
        root = Path(self.root)
        subprocess.run([sys.executable, str(root / KERNELS / "make.py")], check=False)
        library = next((root / KERNELS).glob("vision_kernels.*"), None)
        if library is None:
            self.app.display_warning("a wheel for every platform, without kernels")
            return
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform(library.read_bytes())}"
        build_data["force_include"][str(library)] = str(KERNELS / library.name)


def platform(library: bytes) -> str:
    """The platform tag of a wheel with this native library, which links to nothing but the system.

    On Linux that is the oldest glibc that has every symbol which the library names.
    """
    system = re.sub(r"[-.]", "_", sysconfig.get_platform())
    if not system.startswith("linux_"):
        return system
    minor = max(int(number) for number in re.findall(rb"GLIBC_2\.(\d+)", library))
    return f"manylinux_2_{max(minor, 17)}_{system.removeprefix('linux_')}"
