"""The files of a model directory: opened once, hashed, and shown unchanged after they were loaded.

onnxruntime opens its files by path. So they stay open here from before their hash is taken until
the model is loaded; whatever was replaced or written to in between gives itself away by its inode,
size or time of change. On POSIX systems the time of change (ctime) cannot be set by a program.
"""

import mmap
import os
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from hashlib import file_digest
from pathlib import Path
from typing import BinaryIO, Self

from sidecar.errors import ModelInvalid, exhausted
from sidecar.manifest import REBUILD, File, Manifest, read

_FLAGS = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
_FLAGS |= getattr(os, "O_BINARY", 0) | getattr(os, "O_NOINHERIT", 0)
# A file that was written to less than this long ago could be written to again at the same time, as
# file systems count it (Linux: 4 ms or less).
SETTLED_NS = 20_000_000
SETTLE_ATTEMPTS = 100


@dataclass(frozen=True, slots=True)
class Identity:
    """Two that are equal are the same file with the same content."""

    device: int
    inode: int
    bytes: int
    modified_ns: int
    changed_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Self:
        return cls(
            status.st_dev,
            status.st_ino,
            status.st_size,
            status.st_mtime_ns,
            status.st_ctime_ns if os.name == "posix" else 0,  # Windows: when it was created
        )


class ModelFiles:
    """Use it in a `with` statement around the loading of the model; then call `check_unchanged`.

    Raises ModelInvalid where a file is not as the manifest says, and ResourcesExhausted.
    """

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        self.directory = directory.resolve()
        self.manifest = manifest
        self._open = ExitStack()
        self._files: dict[str, tuple[BinaryIO, Identity]] = {}
        try:
            for name, expected in manifest.files.items():
                self._files[name] = self._check(name, expected)
        except BaseException:
            self._open.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def path(self, name: str) -> Path:
        """Where to load a file from that is named in the manifest."""
        return self.directory / name

    @contextmanager
    def content(self, name: str) -> Iterator[memoryview]:
        """The bytes of the file that was hashed, whatever lies at its path by now."""
        stream, identity = self._files[name]
        if identity.bytes == 0:
            yield memoryview(b"")
            return
        # Not closed by hand: an exception that passes here may still hold parts of it.
        yield memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))

    def check_unchanged(self) -> None:
        """Raises ModelInvalid where a file is another one now, or was written to."""
        for name, (stream, identity) in self._files.items():
            try:
                same = identity == Identity.of(os.fstat(stream.fileno()))
                same = same and identity == Identity.of(self.path(name).lstat())
            except OSError:
                same = False
            if not same:
                raise ModelInvalid(f"{name} was changed while it was loaded. {REBUILD}")

    def _check(self, name: str, expected: File) -> tuple[BinaryIO, Identity]:
        path = self.path(name)
        try:
            if path.is_symlink() or path.resolve().parent != self.directory:
                raise ModelInvalid(
                    f"{name} is a link or lies outside the model directory. {REBUILD}"
                )
            if not stat.S_ISREG(path.lstat().st_mode):
                raise ModelInvalid(f"{name} is no file. {REBUILD}")
            stream = self._open.enter_context(os.fdopen(os.open(path, _FLAGS), "rb", buffering=0))
            identity = _settled(stream, name)
            if identity.bytes != expected.bytes:
                raise ModelInvalid(
                    f"{name} has {identity.bytes} bytes where the manifest says {expected.bytes}. "
                    f"{REBUILD}"
                )
            sha256 = file_digest(stream, "sha256").hexdigest()
        except FileNotFoundError as error:
            raise ModelInvalid(f"{name} is missing. {REBUILD}") from error
        except OSError as error:
            raise exhausted(error) or ModelInvalid(
                f"{name} cannot be read: {error.strerror}. {REBUILD}"
            ) from error
        if sha256 != expected.sha256:
            raise ModelInvalid(
                f"{name} has changed: its SHA-256 begins {sha256[:12]} where the manifest says "
                f"{expected.sha256[:12]}. {REBUILD}"
            )
        return stream, identity


def load(directory: Path) -> Manifest:
    """Read the manifest and check every file; what comes back describes files that are as they were
    built. Raises ModelInvalid, ResourcesExhausted.
    """
    manifest = read(directory)
    with ModelFiles(directory, manifest):
        return manifest


def _settled(stream: BinaryIO, name: str) -> Identity:
    """The identity of an open file, once its last change is long enough ago to tell the next."""
    for _ in range(SETTLE_ATTEMPTS):
        status = os.fstat(stream.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ModelInvalid(f"{name} is no file. {REBUILD}")
        if abs(time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns)) > SETTLED_NS:
            return Identity.of(status)
        time.sleep(SETTLED_NS / 1e9)
    raise ModelInvalid(f"{name} is being written to. Wait until the model is copied.")
