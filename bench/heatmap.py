"""What a heatmap costs, and what its scores follow: `python -m bench.heatmap [--model DIR]`.

Times the drawing alone, on the example page scaled up, without a model. With one, it prints how far
the scores of the example page go with the ink in each cell, whether its colours stand in the order
of its scores, and whether pages without content stay without colour.
"""

import argparse
import io
import time
import tracemalloc
from pathlib import Path

import numpy as np
from PIL import Image

from sidecar import encoder, heatmap, manifest
from sidecar.encoder import Encoder
from sidecar.job import HEATMAP_PNG, HeatmapOptions, ImageFile, Job, Pixels, Rgb
from sidecar.manifest import GRID
from sidecar.settings import parse

PAGE = Path(__file__).parents[1] / "examples" / "ecg.png"
SIZES = ((600, 400), (1400, 1000), (3000, 2000), (8000, 6000), (8000, 8000))  # width, height
INK = 100  # a pixel darker than this, of 255, is ink
ROUNDS = 5


def costs() -> None:
    """Processor seconds to paint and to write the PNG, the best of some rounds; and the memory."""
    share = ink(np.asarray(Image.open(PAGE).convert("RGB")))
    scores = (share / share.max()).astype(np.float32)
    options = HeatmapOptions()
    print("| pixels | paint s | paint and PNG s | PNG MB | memory MB | picture MB |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    for width, height in SIZES:
        page = Image.open(PAGE).convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
        picture = np.asarray(page)
        painting, drawing = [], []
        for _ in range(ROUNDS if width * height < 2e7 else 1):
            begun = time.process_time()
            table = heatmap.tables(options, "multiply", flat=False)
            for _band in heatmap.paint(scores, picture, options, table):
                pass
            painting.append(time.process_time() - begun)
            begun = time.process_time()
            png = heatmap.draw(scores, picture, options, (1.0, 2.0))
            drawing.append(time.process_time() - begun)
        tracemalloc.start()
        heatmap.draw(scores, picture, options, (1.0, 2.0))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        print(
            f"| {width} x {height} | {min(painting):.3f} | {min(drawing):.3f} | "
            f"{len(png) / 1e6:.1f} | {peak / 1e6:.0f} | {picture.nbytes / 1e6:.0f} |"
        )


def ink(rgb: Rgb) -> np.ndarray:
    """The share of dark pixels in each of the 16 x 16 cells: [256]."""
    dark = Image.fromarray((rgb.mean(axis=2) < INK).astype(np.float32))
    return np.asarray(dark.resize((GRID, GRID), Image.Resampling.BOX)).reshape(-1)


def empty_pages() -> dict[str, Rgb]:
    """Pages without content, by name; none is among those that the build measures (build.flat)."""
    noise = np.random.default_rng(5)
    shade = np.linspace(228, 250, 500).astype(np.uint8)[:, None, None]
    return {
        "yellow paper": np.full((300, 420, 3), (250, 240, 200), np.uint8),
        "a grey page": np.full((500, 400, 3), 190, np.uint8),
        "white noise at low contrast": noise.normal(200, 6, (400, 400, 3))
        .clip(0, 255)
        .astype(np.uint8),
        "a scanner's shade": np.tile(shade, 3).repeat(350, axis=1),
        "a blue page, larger": np.full((1400, 1000, 3), (200, 214, 240), np.uint8),
    }


def uncoloured(loaded: Encoder, rgb: Rgb, side: int) -> bool:
    """Whether the heatmap of an image is the image itself."""
    found = loaded.encode(Job(Pixels(rgb), (side, side), (HEATMAP_PNG,)))
    drawn = np.asarray(Image.open(io.BytesIO(found.arrays[HEATMAP_PNG].tobytes())))
    return found.flat == (True,) and np.array_equal(drawn[: len(rgb)], rgb)


def order_kept(scores: np.ndarray) -> float:
    """Spearman's rank correlation of 256 scores with the colours of their cells on white."""
    options = HeatmapOptions(legend=False, cells=True)
    png = heatmap.draw(scores, np.full((160, 160, 3), 255, np.uint8), options)
    colour = 255 - np.asarray(Image.open(io.BytesIO(png)))[5::10, 5::10, 2].astype(int)
    ranks = [of.reshape(-1).argsort(kind="stable").argsort() for of in (colour, scores)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def follow(model: Path) -> None:
    """At each resolution: the example page's scores, ink and colours; and the empty pages."""
    described = manifest.read(model)
    loaded = encoder.load(described, parse(["verify", "--model", str(model)]))
    file = PAGE.read_bytes()
    share = ink(np.asarray(Image.open(PAGE).convert("RGB")))
    pages = empty_pages()
    print("| pixels | norms | r with ink | order of colours | empty pages without colour |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    for side in described.resolutions:
        found = loaded.encode(Job(ImageFile(file), (side, side)))
        scores = found.arrays["attention_scores"][0]
        r = float(np.corrcoef(scores, share)[0, 1])
        least, largest = found.norms[0]
        bare = sum(uncoloured(loaded, rgb, side) for rgb in pages.values())
        print(
            f"| {side} | {least:.3g} to {largest:.3g}{', flat' if found.flat[0] else ''} | {r:.2f} "
            f"| {order_kept(scores):.4f} | {bare} of {len(pages)} |"
        )


def main() -> None:
    """Print both as Markdown."""
    parser = argparse.ArgumentParser(prog="python -m bench.heatmap", description=__doc__)
    parser.add_argument("--model", type=Path, help="a model directory")
    chosen = parser.parse_args()
    costs()
    if chosen.model:
        print()
        follow(chosen.model)


if __name__ == "__main__":
    main()
