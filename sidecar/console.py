"""Words for a person or a parent process: a line on stdout, a sentence on stderr, an exit code."""

import contextlib
import sys
from typing import BinaryIO

from sidecar.errors import SidecarError

FAILED = 1  # the exit code


def say(stdout: BinaryIO, line: bytes) -> None:
    """Write and flush. A stdout that is closed is no error: whether somebody reads or not, we go
    on.
    """
    with contextlib.suppress(OSError, ValueError):
        stdout.write(line)
        stdout.flush()


def complain(error: Exception, where: str = "") -> int:
    """Write one sentence to stderr, with the error's code if it has one; return FAILED."""
    code = f"{error.code}: " if isinstance(error, SidecarError) else ""
    text = error.strerror if isinstance(error, OSError) else str(error)
    with contextlib.suppress(OSError, ValueError):
        print(f"{where}{': ' if where else ''}{code}{text}", file=sys.stderr)
    return FAILED
