"""Overwrite this machine's paths in a bundle's libraries, byte for byte, so that no offset moves.

The interpreter remembers where it was compiled and installed; a bundle needs neither. Linux only:
elsewhere a changed byte would void a signature.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from contents import machine_path_pattern, made_here

NOWHERE = b"/nowhere"


def neutral(match: re.Match[bytes]) -> bytes:
    """A path of the same length that exists nowhere; slashes in a row count as one.

    The last name stays: linkers let a short string share the end of a longer one, and Python's
    version is the end of the folder that it was installed in.
    """
    folder, slash, name = match[0].rpartition(b"/")
    return NOWHERE.ljust(len(folder), b"/")[: len(folder)] + slash + name


def main() -> int:
    """Scrub the bundle in argv: what was made here, and nothing out of a wheel."""
    pattern = machine_path_pattern()
    for path in made_here(Path(sys.argv[1])):
        before = path.read_bytes()
        after = pattern.sub(neutral, before)
        if after != before:
            path.write_bytes(after)
    return 0


if __name__ == "__main__":
    sys.exit(main())
