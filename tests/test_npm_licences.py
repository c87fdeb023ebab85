"""The npm package carries the terms of what it brings into an app, and they are today's."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.skipif(
    not (ROOT / "electron_bridge" / "node_modules").exists() or not shutil.which("node"),
    reason="the npm packages are not installed; run `make install`",
)
def test_the_terms_in_the_npm_package_are_those_of_the_locked_packages() -> None:
    script = ROOT / "packaging" / "npm_licences.mjs"
    checked = subprocess.run(["node", script, "--check"], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
