"""Encodes on a CPU with AVX2 and without VNNI, which qemu plays: `python -m tests.haswell DIR`.

DIR is the model directory of the demo checkpoint. Prints the figures of its plain graph against the
float reference for a few images: onnxruntime takes another path there, which overflows unless told.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).parents[1]
QEMU = shutil.which("qemu-x86_64-static") or shutil.which("qemu-x86_64")
ENCODE = """
import sys
import numpy as np
from pathlib import Path
from sidecar.session import Session, saturates
session = Session(Path(sys.argv[1]), threads=2)
with np.load(sys.argv[2]) as images:
    found = {f"{name}/{output}": array for name in images
             for output, array in session.run(images[name]).items()}
np.savez(sys.argv[3], saturates=saturates(), **found)
"""

Arrays = dict[str, NDArray[np.float32]]


def encode(graph: Path, images: Arrays) -> tuple[bool, dict[str, Arrays]]:
    """Does such a CPU overflow by itself? And by image, the outputs of the sidecar's session."""
    assert QEMU is not None
    with tempfile.TemporaryDirectory() as scratch:
        given, found = Path(scratch) / "given.npz", Path(scratch) / "found.npz"
        np.savez(given, allow_pickle=False, **images)
        subprocess.run(
            [QEMU, "-cpu", "Haswell", sys.executable, "-c", ENCODE, str(graph), str(given), found],
            check=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stderr=subprocess.DEVNULL,  # qemu's words on features it does not have
        )
        with np.load(found) as arrays:
            outputs: dict[str, Arrays] = {name: {} for name in images}
            for key in arrays:
                name, _, output = key.rpartition("/")
                if name:
                    outputs[name][output] = arrays[key]
            return bool(arrays["saturates"]), outputs


def main(argv: Sequence[str] | None = None) -> None:
    """Print the figures."""
    import torch

    from build import demo, images
    from build.__main__ import CACHE
    from build.checkpoint import locate
    from build.export import OUTPUTS
    from build.reference import geometry, load
    from build.validate import compare
    from sidecar import manifest

    parser = argparse.ArgumentParser(prog="python -m tests.haswell", description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--pixels", type=int, default=448)
    parser.add_argument("--images", type=int, default=4)
    options = parser.parse_args(argv)
    described = manifest.load(options.model)
    names = images.VALIDATION[:: len(images.VALIDATION) // options.images][: options.images]
    side, how = options.pixels, described.normalisation
    given: dict[str, Any] = {
        name: images.pixel_values(images.bundled(name), side, side, how) for name in names
    }
    with tempfile.TemporaryDirectory() as scratch:
        step, source = locate(str(demo.checkpoint(CACHE, print)))
        step(source, Path(scratch))
        reference = load(Path(scratch), described.projection)
        assert side in geometry(Path(scratch)).resolutions
        with torch.inference_mode():
            expected = {
                name: dict(
                    zip(OUTPUTS, (x.numpy() for x in reference(torch.from_numpy(p))), strict=True)
                )
                for name, p in given.items()
            }
    overflows, found = encode(options.model / described.graph, given)
    print(f"{', '.join(names)} at {side} pixels; overflows by itself: {overflows}")
    for name, figure in compare(expected, found):
        print(f"{name} {figure.value:.5f} ({figure.image})")


if __name__ == "__main__":
    main()
