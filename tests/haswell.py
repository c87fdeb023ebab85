"""Encodes on a CPU with AVX2 and without VNNI, which qemu plays: `python -m tests.haswell DIR`.

DIR is the model directory of the demo checkpoint. Prints the figures against the float reference,
of the plain graph and of the one that the sidecar takes there. onnxruntime takes another path on
such a CPU, which overflows unless told; our attention has 7 bits where others have 8.
"""

import argparse
import json
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
import json, sys
import numpy as np
from pathlib import Path
from sidecar import engine, manifest
from sidecar.model_files import ModelFiles
from sidecar.session import saturates
model, kernels, given, to = sys.argv[1:]
with ModelFiles(Path(model), manifest.read(Path(model))) as files:
    session, choice = engine.select(files, 2, kernels)
state = choice.custom_ops
with np.load(given) as images:
    found = {f"{name}/{output}": array for name in images
             for output, array in session.run(images[name]).items()}
np.savez(to, **found)
print(json.dumps({"overflows": saturates(), "kernels": state.on, "why": state.why}))
"""

Arrays = dict[str, NDArray[np.float32]]


def encode(model: Path, kernels: str, images: Arrays) -> tuple[dict[str, Any], dict[str, Arrays]]:
    """What such a CPU is like and which graph it takes, and by image the outputs of the sidecar."""
    assert QEMU is not None
    with tempfile.TemporaryDirectory() as scratch:
        given, found = Path(scratch) / "given.npz", Path(scratch) / "found.npz"
        np.savez(given, allow_pickle=False, **images)
        paths = (str(model), kernels, str(given), str(found))
        done = subprocess.run(
            [QEMU, "-cpu", "Haswell", sys.executable, "-c", ENCODE, *paths],
            check=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # qemu's words on features it does not have
        )
        with np.load(found) as arrays:
            outputs: dict[str, Arrays] = {name: {} for name in images}
            for key in arrays:
                name, _, output = key.rpartition("/")
                outputs[name][output] = arrays[key]
            return json.loads(done.stdout), outputs


def main(argv: Sequence[str] | None = None) -> None:
    """Print the figures."""
    import torch

    from build import demo, images, pipeline
    from build.__main__ import CACHE
    from build.artifacts import read_geometry
    from build.checkpoint import locate
    from build.metrics import compare
    from build.reference import load
    from sidecar import model_files
    from sidecar.job import OUTPUTS

    parser = argparse.ArgumentParser(prog="python -m tests.haswell", description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--pixels", type=int, default=448)
    parser.add_argument("--images", type=int, default=4)
    options = parser.parse_args(argv)
    described = model_files.load(options.model)
    names = images.VALIDATION[:: len(images.VALIDATION) // options.images][: options.images]
    side, how = options.pixels, described.normalisation
    given: dict[str, Any] = {
        name: images.pixel_values(images.bundled(name), side, side, how) for name in names
    }
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = demo.checkpoint(CACHE, pipeline.code(demo.__name__), print)
        locate(str(checkpoint))(pipeline.Inputs(), Path(scratch))
        projection: Any = described.projection
        reference = load(Path(scratch), projection)
        assert side in read_geometry(Path(scratch)).resolutions
        with torch.inference_mode():
            expected = {
                name: dict(
                    zip(OUTPUTS, (x.numpy() for x in reference(torch.from_numpy(p))), strict=True)
                )
                for name, p in given.items()
            }
    print(f"{', '.join(names)} at {side} pixels")
    for kernels in ("off", "auto"):
        state, found = encode(options.model, kernels, given)
        print(f"\n--kernels {kernels}: {json.dumps(state)}")
        for name, figure in compare(expected, found):
            print(f"{name} {figure.value:.5f} ({figure.image})", flush=True)


if __name__ == "__main__":
    main()
