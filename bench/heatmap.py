"""What a heatmap costs, and what its scores follow: `python -m bench.heatmap [--model DIR]`.

Times the drawing alone, on the example page scaled up, without a model. With one, it prints how far
the scores of the example page go with the ink in each cell.
"""

import argparse
import time
import tracemalloc
from pathlib import Path

import numpy as np
from PIL import Image

from sidecar import encoder, heatmap, manifest
from sidecar.job import HeatmapOptions, ImageFile, Job, Rgb
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


def follow(model: Path) -> None:
    """Pearson's r of the example page's scores with its ink, at each resolution."""
    described = manifest.read(model)
    loaded = encoder.load(described, parse(["verify", "--model", str(model)]))
    file = PAGE.read_bytes()
    share = ink(np.asarray(Image.open(PAGE).convert("RGB")))
    for side in described.resolutions:
        found = loaded.encode(Job(ImageFile(file), (side, side)))
        scores = found.arrays["attention_scores"][0]
        r = float(np.corrcoef(scores, share)[0, 1])
        least, largest = found.norms[0]
        print(
            f"{side} pixels: r with ink {r:.2f}; norms {least:.3g} to {largest:.3g}"
            f"{', flat' if found.flat[0] else ''}; upper left {scores[:5].mean():.2f}, "
            f"all {scores.mean():.2f}"
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
