"""An encoder that needs no model: vectors drawn from the bytes of a file; and corpora of it."""

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np

from build.corpus_plan import About, Folder
from build.corpus_rows import BlockEncoder, Encodes, Job
from build.corpus_source import items
from sidecar.errors import ImageUnreadable, ResourcesExhausted
from sidecar.quantised import Floats
from sidecar.vision_encoder import Encoding

DIMS = 24
BAD = b"bad"


@dataclass
class StandIn:
    """`log`: a folder for a file a process, with the time and the name of each encode."""

    seconds: float = 0.0
    log: str = ""
    failures: int = 0  # how often memory is short at first

    def encode(self, image: bytes, *, resolution: tuple[int, int]) -> Encoding:
        """Raises ImageUnreadable, ResourcesExhausted."""
        if self.failures:
            self.failures -= 1
            raise ResourcesExhausted("the machine has no memory left for this.")
        if self.log:
            with (Path(self.log) / str(os.getpid())).open("a") as file:
                file.write(f"{time.monotonic()} {image[:16].decode()}\n")
        time.sleep(self.seconds)
        if image.startswith(BAD):
            raise ImageUnreadable("the bytes are no image.")
        tokens = tokens_of(image)
        return Encoding(
            projected_embeddings=tokens[None],
            attention_scores=np.zeros((1, 256), np.float32),
            pooled_embedding=tokens.mean(0)[None],
            resolution=resolution,
            norms=((0.5, 2.0),),
            flat=(False,),
            model="m" * 64,
        )


@dataclass(frozen=True)
class Load:
    """What an actor calls for its encoder."""

    seconds: float
    log: str

    def __call__(self, _: Job) -> StandIn:
        return StandIn(self.seconds, self.log)


def no_check(_: Job) -> str:
    """Of a model directory that is not there."""
    return ""


def tokens_of(image: bytes) -> Floats:
    """[256, DIMS], always the same for the same bytes."""
    seed = int.from_bytes(blake2b(image, digest_size=8).digest(), "little")
    drawn = np.random.default_rng(seed).normal(size=(256, DIMS))
    return np.asarray(drawn + drawn[:1], np.float32)


def about(source: Path, block: int = 4, tokens: bool = False) -> About:
    """Of a corpus of the stand-in."""
    return About(
        str(source), "m" * 64, "default", "projector", (448, 448), DIMS, "1", tokens, block
    )


def folder_of(folder: Path, names: Iterable[str], bad: Iterable[str] = ()) -> Path:
    """Files that the stand-in takes for images."""
    wrong = set(bad)
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((BAD if name in wrong else b"") + name.encode())
    return folder


def prepared(source: Path, out: Path, block: int = 4, tokens: bool = False) -> tuple[Job, Folder]:
    """A job whose items are listed."""
    folder = Folder(str(out))
    job = Job("", str(out), about(source, block, tokens), 1, "auto")
    folder.begin(job.about)
    folder.add(items(str(source)))
    return job, folder


def encode(job: Job, folder: Folder, encoder: Encodes) -> int:
    """Every block that is not done. How many those were."""
    blocks = BlockEncoder(job, lambda _: encoder)
    todo = [block for block, _ in folder.blocks(job.about.block) if block not in folder.done()]
    for block in todo:
        blocks(block)
    return len(todo)


def corpus(source: Path, out: Path, block: int = 4) -> Path:
    """The rows of a source."""
    job, folder = prepared(source, out, block)
    encode(job, folder, StandIn())
    return out
