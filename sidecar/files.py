"""Files that a person names in a terminal: one clear error; written whole or not at all."""

import contextlib
import os
from pathlib import Path

from sidecar.errors import ImageUnreadable


def read(path: Path) -> bytes:
    """Raises ImageUnreadable."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ImageUnreadable(f"the file cannot be read: {error.strerror}.") from error


def write(path: Path, data: bytes) -> None:
    """A full disk must not leave half a file under its final name. Raises OSError."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise OSError(error.errno, f"a result cannot be written: {error.strerror}") from None
