"""What a search finds with a model, measured on the user's own images.

    python -m build.retrieval MODEL --images DIR [--resolution N] [--write]

Prints what 8 bits keep of the exact order, what whitening gains, what the basis of regions keeps,
and where places lie. Where 8 bits keep less than 0.98 of the ten nearest and 16 bits more, --write
notes 16 bits in the model's manifest, for collections that are made from then on. That changes the
model's digest: collections that were made before belong to the model as it was.

16 bits are integers too: as large as float16, closer to the numbers, and quicker to search, since
numpy converts float16 one number at a time.
"""

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from build import images
from build.console import exit_code
from sidecar import encoder, manifest, places, settings
from sidecar.case_store import About
from sidecar.collection import Collection, Vectors
from sidecar.errors import SidecarError
from sidecar.job import Job, Pixels, Rgb
from sidecar.places import BASIS_AT, Basis, Box
from sidecar.quantised import Floats
from sidecar.whitening import FIT_AT, Whitening

LEAST = 64  # images: fewer have no basis
ENOUGH = 1000  # for the promise of 0.98
LEAST_OVERLAP = 0.98
VIEWED = 200  # images of which other views are made
GRACE = 0.125  # half a region: one at the edge of a cut lies in it in part
K = 10


@dataclass(frozen=True, eq=False)
class Encoded:
    """Of n images: `pooled` [n, dims], `regions` [n, 16, dims]; and altered views of the first."""

    pooled: Floats
    regions: Floats
    altered: Floats  # [m, dims], another brightness and JPEG
    crops: list[tuple[Vectors, Box]]  # of the first m, and where they were cut


def overlap(pooled: Floats, precision: str) -> float:
    """The share of the exact float search's ten nearest that a collection of these finds."""
    whitening = Whitening.fit(pooled[: max(size for size in FIT_AT if size <= len(pooled))])
    exact = _unit(whitening.apply(pooled))
    none = np.zeros((places.REGIONS, pooled.shape[1]), np.float32)
    kept = 0
    with tempfile.TemporaryDirectory() as scratch:
        about = About("0" * 64, "", (1, 1), pooled.shape[1], precision)
        collection = Collection.open(Path(scratch) / "cases", about, create=True)
        with collection.store.writing():
            for number, vector in enumerate(pooled):
                collection.add(str(number), Vectors(vector, none), {})
        for number, vector in enumerate(pooled):
            found = [int(match.id) for match in collection.search(Vectors(vector, none), K + 1)]
            similarities = exact @ exact[number]
            similarities[number] = -np.inf
            best = np.argsort(-similarities, kind="stable")[:K]
            kept += len({*best.tolist()} & {*[id for id in found if id != number][:K]})
        collection.close()
    return kept / (K * len(pooled))


def gain(encoded: Encoded) -> dict[str, float]:
    """How often an altered view or a crop finds its image first: by the plain cosine, and whitened
    with what was fitted on the images of which no views were made, if there are enough of them.
    """
    seen = len(encoded.altered)
    others = encoded.pooled[seen:] if len(encoded.pooled) - seen >= LEAST else encoded.pooled
    whitening = Whitening.fit(others[: FIT_AT[-1]])
    crops = np.stack([vectors.pooled for vectors, _ in encoded.crops])
    row = {}
    for what, asked in (("altered", encoded.altered), ("crop", crops)):
        for how, of in (("cosine", lambda x: x), ("whitened", whitening.apply)):
            similarities = _unit(of(asked)) @ _unit(of(encoded.pooled)).T
            row[f"{what} view, {how}"] = float((similarities.argmax(1) == np.arange(seen)).mean())
    return row


def basis_keeps(regions: Floats) -> float:
    """The share of the regions' variance that is left in the basis that a collection fits."""
    basis = Basis.fit(regions[:BASIS_AT].reshape(-1, regions.shape[-1]))
    centred = regions.reshape(-1, regions.shape[-1]) - basis.mean
    axes = basis.axes / np.linalg.norm(basis.axes, axis=1, keepdims=True)
    return float(((centred @ axes.T) ** 2).sum() / (centred**2).sum())


def where_places_lie(encoded: Encoded) -> dict[str, float]:
    """Crops against the images that they were cut from, and against others."""
    with tempfile.TemporaryDirectory() as scratch:
        about = About("0" * 64, "", (1, 1), encoded.pooled.shape[1])
        collection = Collection.open(Path(scratch) / "cases", about, create=True)
        with collection.store.writing():
            for number, vector in enumerate(encoded.pooled):
                collection.add(str(number), Vectors(vector, encoded.regions[number]), {})
        shown = inside = without = 0
        for number, (vectors, box) in enumerate(encoded.crops):
            own, other = str(number), str((number + LEAST // 2) % len(encoded.pooled))
            slots = [case.slot for case in map(collection.store.find, (own, other)) if case]
            pairs, strange = collection._pairs(vectors, slots)
            shown += bool(pairs)
            inside += bool(pairs) and all(in_cut(box, pair.match) for pair in pairs)
            without += not strange
        collection.close()
    count = len(encoded.crops)
    return {
        "crops with places": shown / count,
        "of those, all in the cut": inside / max(shown, 1),
        "other images without places": without / count,
    }


def in_cut(cut: Box, box: Box) -> bool:
    """By its middle, with half a region of grace."""
    y, x = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    return cut[0] - GRACE <= y <= cut[2] + GRACE and cut[1] - GRACE <= x <= cut[3] + GRACE


def encode(
    loaded: encoder.Encoder, paths: Sequence[Path], resolution: tuple[int, int]
) -> tuple[Encoded, list[str]]:
    """Every image, and two views of the first ones; and what could not be read, told by name."""
    pooled: list[Floats] = []
    regions: list[Floats] = []
    altered: list[Floats] = []
    crops: list[tuple[Vectors, Box]] = []
    bad: list[str] = []
    draws = np.random.default_rng(0)
    for number, path in enumerate(paths, 1):
        try:
            rgb = images.read(path)
            own = _vectors(loaded, rgb, resolution)
        except OSError as error:  # of `images.read`, which names the file
            bad.append(str(error))
            continue
        except SidecarError as error:
            bad.append(f"{path.name}: {error}")
            continue
        pooled.append(own.pooled)
        regions.append(own.regions)
        if len(altered) < VIEWED:
            altered.append(_vectors(loaded, alter(rgb), resolution).pooled)
            part, box = crop(rgb, draws)
            crops.append((_vectors(loaded, part, resolution), box))
        if number % 50 == 0:
            print(f"{number} of {len(paths)} images", file=sys.stderr, flush=True)
    if len(pooled) < LEAST:
        raise OSError(f"expected at least {LEAST} images that can be read; {len(pooled)} can.")
    return Encoded(np.stack(pooled), np.stack(regions), np.stack(altered), crops), bad


def alter(rgb: Rgb) -> Rgb:
    """Brighter, and as a JPEG file of moderate quality."""
    file = BytesIO()
    Image.fromarray(rgb).point(lambda value: min(255, round(value * 1.15 + 8))).save(
        file, "JPEG", quality=60
    )
    return np.asarray(Image.open(file).convert("RGB"))


def crop(rgb: Rgb, draws: np.random.Generator) -> tuple[Rgb, Box]:
    """A part of 0.5 to 0.7 of each side, and where it was cut."""
    share = draws.uniform(0.5, 0.7)
    top, left = draws.uniform(0, 1 - share), draws.uniform(0, 1 - share)
    height, width = rgb.shape[:2]
    rows = slice(round(top * height), max(round((top + share) * height), 1))
    columns = slice(round(left * width), max(round((left + share) * width), 1))
    return np.ascontiguousarray(rgb[rows, columns]), (top, left, top + share, left + share)


def _vectors(loaded: encoder.Encoder, rgb: Rgb, resolution: tuple[int, int]) -> Vectors:
    arrays = loaded.encode(Job(Pixels(rgb), resolution)).arrays
    tokens = np.asarray(arrays["projected_embeddings"][0], np.float32)
    return Vectors.of(np.asarray(arrays["pooled_embedding"][0], np.float32), tokens)


def measure(encoded: Encoded) -> dict[str, float]:
    """All figures; the keys are the table's rows."""
    figures: dict[str, float] = {"images": len(encoded.pooled)}
    for precision in ("int8", "int16"):
        figures[f"overlap of ten, {precision}"] = overlap(encoded.pooled, precision)
    figures |= gain(encoded)
    figures["variance kept by the basis of regions"] = basis_keeps(encoded.regions)
    return figures | where_places_lie(encoded)


def choice(figures: Mapping[str, float]) -> str:
    """int8, or int16 where 8 bits keep too little and 16 bits more."""
    low, high = (figures[f"overlap of ten, {of}"] for of in ("int8", "int16"))
    return "int16" if low < LEAST_OVERLAP and high > low else "int8"


def table(figures: Mapping[str, float]) -> str:
    """Markdown."""
    lines = ["| | |", "|---|---:|", *(f"| {name} | {of:.4g} |" for name, of in figures.items())]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0, or 1 after one clear sentence."""
    parser = argparse.ArgumentParser(prog="python -m build.retrieval", description=__doc__)
    parser.add_argument("model", type=Path, help="model directory")
    parser.add_argument("--images", type=Path, required=True, help="folder of images")
    parser.add_argument("--resolution", type=int, help="default: the model's own")
    parser.add_argument("--write", action="store_true", help="note the choice in the manifest")
    options = parser.parse_args(argv)
    return exit_code("retrieval", lambda: _measure(options), resumes=False)


def _measure(options: argparse.Namespace) -> None:
    described = manifest.read(options.model)
    side = described.side(options.resolution)
    paths = images.files(options.images)
    if len(paths) < LEAST:
        raise OSError(f"expected at least {LEAST} images in the folder, found {len(paths)}.")
    loaded = encoder.load(described, settings.parse(["verify", "--model", str(options.model)]))
    encoded, bad = encode(loaded, paths, (side, side))
    for line in bad:
        print(f"not an image that can be read: {line}", file=sys.stderr)
    figures = measure(encoded)
    chosen = choice(figures)
    print(table(figures))
    model = f"{described.model_id}, {described.recipe}"
    print(f"\n{model}, {side} x {side} pixels. Collections: {chosen}.")
    if len(encoded.pooled) < ENOUGH:
        print(f"Fewer than {ENOUGH} images: the shares of ten nearest say less than they should.")
    if chosen == described.collections:
        return
    if not options.write:
        print(f"The manifest says {described.collections}; --write changes that.")
        return
    manifest.write(replace(described, collections=chosen), options.model)
    print("The manifest is changed, and with it the model's digest.")


def _unit(vectors: Floats) -> Floats:
    unit: Floats = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


if __name__ == "__main__":
    sys.exit(main())
