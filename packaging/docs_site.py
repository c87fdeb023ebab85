"""Build the documentation's site in out/site: all pages and the API. A dead link fails.

    .venv/bin/python packaging/docs_site.py

Pages link to source files too: such a link must lead to a file, and becomes text.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / ".work" / "site"
SITE = ROOT / "out" / "site"
TOP = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "LOG.md")
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?!https?://|#|mailto:)([^)#\s]+)(#[^)\s]*)?\)")


def collect() -> list[str]:
    """Copy every page, at the place where it is; the links that lead nowhere."""
    shutil.rmtree(PAGES, ignore_errors=True)
    sources = [ROOT / name for name in TOP]
    sources += [*sorted((ROOT / "docs").glob("*.md")), ROOT / "examples" / "README.md"]
    dead: list[str] = []
    for source in sources:
        target = PAGES / source.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        replace = partial(_link, source=source, pages=sources, dead=dead)
        text = LINK.sub(replace, source.read_text("utf-8"))
        target.write_text(text, "utf-8")
    shutil.copytree(ROOT / "docs" / "images", PAGES / "docs" / "images")
    return dead


def _link(found: re.Match[str], *, source: Path, pages: list[Path], dead: list[str]) -> str:
    """A link between pages as it is, else its text; what leads nowhere is added to `dead`."""
    target = (source.parent / found[2]).resolve()
    if target in pages:
        return found[0]
    if not target.exists():
        dead.append(f"{source.relative_to(ROOT)}: {found[2]}")
    return found[1]


def main() -> int:
    """Collect, build, and add the API."""
    dead = collect()
    for link in dead:
        print(f"a link that leads nowhere: {link}")
    config = ROOT / "packaging" / "mkdocs.yml"
    mkdocs = [sys.executable, "-m", "mkdocs", "--quiet", "build", "--config-file", str(config)]
    built = subprocess.run(mkdocs, check=False).returncode == 0
    if dead or not built:
        return 1
    shell = sys.platform == "win32"
    typedoc = ["npx", "typedoc", "--out", str(SITE / "api"), "--logLevel", "Warn"]
    subprocess.run(typedoc, cwd=ROOT / "electron_bridge", check=True, shell=shell)
    print(f"{len(list(SITE.rglob('*.html')))} pages in {SITE.relative_to(ROOT)}/index.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
