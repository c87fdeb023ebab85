"""A checkpoint in Hugging Face format becomes the vision tower and the projector alone.

Bytes are copied as they are stored, one tensor after the other: memory does not grow with the
checkpoint. Knows nothing of the hub's protocol, nor of torch.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from build import tensors
from build.errors import BuildError
from build.tensors import Tensor
from build.tower import canonical

WEIGHTS = "weights.safetensors"
CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"
SOURCE = "source.json"
CHUNK = 1 << 22


@dataclass(frozen=True)
class Checkpoint:
    """Reads a directory in Hugging Face format; writes WEIGHTS, CONFIG, PREPROCESSOR and SOURCE.

    Tensors keep the dtype that they are stored in. `model_id` and `revision` are only written
    down; `locate` finds them.
    """

    model_id: str
    revision: str

    def __call__(self, source: Path, out: Path) -> None:
        found = _tensors(source)
        shutil.copyfile(source / CONFIG, out / CONFIG)
        if (source / PREPROCESSOR).is_file():
            shutil.copyfile(source / PREPROCESSOR, out / PREPROCESSOR)
        head, order = tensors.header({name: tensor for name, (_, tensor) in found.items()})
        with (out / WEIGHTS).open("wb") as target:
            target.write(head)
            for name in order:
                for chunk in _chunks(*found[name]):
                    target.write(chunk)
        text = json.dumps({"model_id": self.model_id, "revision": self.revision}, indent=2) + "\n"
        (out / SOURCE).write_text(text, encoding="utf-8")


def locate(source: str, revision: str | None = None) -> tuple[Checkpoint, Path]:
    """Turn what the user typed into the pipeline's first step and the directory that it reads.

    Raises BuildError.
    """
    directory = Path(source).expanduser()
    if not directory.is_dir():
        raise BuildError(f"expected a directory in Hugging Face format, found no {source}.")
    return Checkpoint(directory.resolve().name, fingerprint(directory)), directory


def fingerprint(directory: Path) -> str:
    """A hash of all that `Checkpoint` reads in `directory`: it stands for a revision."""
    digest = sha256((directory / CONFIG).read_bytes())
    if (directory / PREPROCESSOR).is_file():
        digest.update((directory / PREPROCESSOR).read_bytes())
    for name, (path, tensor) in sorted(_tensors(directory).items()):
        digest.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
        for chunk in _chunks(path, tensor):
            digest.update(chunk)
    return digest.hexdigest()[:40]


def _tensors(directory: Path) -> dict[str, tuple[Path, Tensor]]:
    found: dict[str, tuple[Path, Tensor]] = {}
    for path in sorted(directory.glob("*.safetensors")):
        with path.open("rb") as stream:
            entries = tensors.read_header(stream, path.stat().st_size, path.name)
        for key, tensor in entries.items():
            if name := canonical(key):
                found[name] = (path, tensor)
    if not found:
        raise BuildError(f"{directory.name} holds no tensors of a Gemma 3 vision tower.")
    return found


def _chunks(path: Path, tensor: Tensor) -> Iterator[bytes]:
    with path.open("rb") as stream:
        stream.seek(tensor.start)
        left = tensor.size
        while left:
            chunk = stream.read(min(CHUNK, left))
            if not chunk:
                raise BuildError(f"{path.name} is cut short. Download or copy it again.")
            left -= len(chunk)
            yield chunk
