# SPDX-License-Identifier: Apache-2.0
"""What make.py says and returns where the kernels cannot be built."""

import subprocess
import sys
from pathlib import Path

import pytest

MAKE = Path(__file__).parents[2] / "sidecar" / "kernels" / "make.py"


@pytest.mark.parametrize(("options", "status"), [([], 0), (["--required"], 1)], ids=str)
def test_without_cmake_only_a_required_build_fails(
    options: list[str], status: int, tmp_path: Path
) -> None:
    made = subprocess.run(
        [sys.executable, str(MAKE), *options],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == status
    assert "no cmake" in made.stdout
