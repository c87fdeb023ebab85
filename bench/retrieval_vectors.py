"""The vectors of `bench.retrieval_images` under one model: encoded once, kept in a folder.

python -m bench.retrieval_vectors MODEL [--resolution 448] [--work .work/retrieval]
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench import retrieval_images
from bench.retrieval_images import View
from sidecar import encoder, manifest, places, settings
from sidecar.job import Job, Pixels

SHARD = 64  # images


@dataclass(frozen=True)
class Set:
    """`pooled` [n, dims] and `regions` [n, 16, dims]; the views come without their pixels."""

    views: list[View]
    pooled: NDArray[np.float32]
    regions: NDArray[np.float16]
    folder: Path

    def tokens(self, i: int) -> NDArray[np.float32]:
        """[256, dims] of a view that `has_tokens`."""
        kept: NDArray[np.float16] = np.load(self.folder / f"{self.views[i].name}.npy")
        return kept.astype(np.float32)


def has_tokens(view: View) -> bool:
    """All tokens are kept of few views only: they take a megabyte each."""
    return view.name.endswith(("-plain", "-crop")) and view.kind == "photo"


def load(model: Path, resolution: int = 448, work: Path = Path(".work/retrieval")) -> Set:
    """Encode what is not kept yet; killed, it goes on where it was."""
    described = manifest.read(model)
    folder = work / f"{described.digest[:16]}-{resolution}"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "complete.json").exists():
        _encode(model, described, resolution, folder)
    kept = json.loads((folder / "complete.json").read_text())
    nothing = np.zeros((0, 0, 3), np.uint8)
    views = [View(**{**view, "rgb": nothing}) for view in kept["views"]]
    shards = [np.load(folder / f"{number}.npz") for number in range(kept["shards"])]
    return Set(
        views,
        np.concatenate([shard["pooled"] for shard in shards]),
        np.concatenate([shard["regions"] for shard in shards]),
        folder,
    )


def _encode(model: Path, described: manifest.Manifest, resolution: int, folder: Path) -> None:
    engine = encoder.load(described, settings.parse(["verify", "--model", str(model)]))
    said: list[dict[str, object]] = []
    waiting: list[View] = []
    shards = 0

    def flush() -> None:
        nonlocal shards
        path = folder / f"{shards}.npz"
        if not path.exists():
            arrays = [_vectors(engine, view, resolution, folder) for view in waiting]
            pooled, regions = (np.stack(column) for column in zip(*arrays, strict=True))
            with path.with_suffix(".partial").open("wb") as file:
                np.savez(file, pooled=pooled, regions=regions)
            path.with_suffix(".partial").replace(path)
            print(f"{len(said)} images are encoded", file=sys.stderr, flush=True)
        shards += 1
        waiting.clear()

    for view in retrieval_images.views():
        waiting.append(view)
        kept = ("name", "kind", "source", "group", "box")
        said.append({name: getattr(view, name) for name in kept})
        if len(waiting) == SHARD:
            flush()
    if waiting:
        flush()
    (folder / "complete.json").write_text(json.dumps({"views": said, "shards": shards}))


def _vectors(
    engine: encoder.Encoder, view: View, resolution: int, folder: Path
) -> tuple[NDArray[np.float32], NDArray[np.float16]]:
    arrays = engine.encode(Job(Pixels(view.rgb), (resolution, resolution))).arrays
    tokens = np.asarray(arrays["projected_embeddings"][0], np.float32)
    if has_tokens(view):
        np.save(folder / f"{view.name}.npy", tokens.astype(np.float16))
    regions = places.regions(tokens)
    return np.asarray(arrays["pooled_embedding"][0], np.float32), regions.astype(np.float16)


def main() -> int:
    """Encode, and say how many there are."""
    parser = argparse.ArgumentParser(prog="python -m bench.retrieval_vectors", description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--resolution", type=int, default=448)
    parser.add_argument("--work", type=Path, default=Path(".work/retrieval"))
    options = parser.parse_args()
    found = load(options.model, options.resolution, options.work)
    print(f"{len(found.views)} images, vectors of {found.pooled.shape[1]} numbers")
    return 0


if __name__ == "__main__":
    sys.exit(main())
