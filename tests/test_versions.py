"""The one version number, wherever a package or a page states it."""

import json
import re
from pathlib import Path

import sidecar

ROOT = Path(__file__).resolve().parents[1]


def package(name: str) -> str:
    return str(json.loads((ROOT / name).read_text())["version"])


def test_the_npm_package_has_the_version_of_the_python_package() -> None:
    assert package("electron_bridge/package.json") == sidecar.__version__


def test_the_lock_file_of_npm_agrees() -> None:
    assert package("electron_bridge/package-lock.json") == sidecar.__version__


def test_the_changelog_begins_with_this_version() -> None:
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == sidecar.__version__
