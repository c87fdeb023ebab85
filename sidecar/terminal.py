"""What a person runs in a terminal: `encode` and `verify`. One answer, then the end."""

import contextlib
import os
import sys
from io import BytesIO
from pathlib import Path
from time import perf_counter
from typing import BinaryIO

import numpy as np

from sidecar import encoder, manifest, manners, session
from sidecar.encoder import HEATMAP_PNG, Encoder, ImageFile, Job
from sidecar.errors import ImageUnreadable, ModelInvalid, SidecarError
from sidecar.session import OUTPUTS
from sidecar.settings import Settings

FAILED = 1


def encode(chosen: Settings, stdout: BinaryIO) -> int:
    """Write `<stem>.npz` and `<stem>.heatmap.png` for each image; one that fails stops no other."""
    stems = [image.stem.casefold() for image in chosen.images]
    if len(set(stems)) < len(stems):
        return complain(ValueError("two images have the same name; encode them one after another."))
    try:
        engine = load(chosen, manifest.read(chosen.model))
        chosen.out.mkdir(parents=True, exist_ok=True)
    except (SidecarError, OSError) as error:
        return complain(error)
    failures = 0
    for number, image in enumerate(chosen.images, 1):
        where = f"image {number} of {len(chosen.images)}"
        try:
            say(stdout, f"{where}: {_encode(engine, image, chosen)}\n".encode())
        except (SidecarError, OSError) as error:
            failures += 1
            complain(error, where)
    return FAILED if failures else 0


def verify(chosen: Settings, stdout: BinaryIO) -> int:
    """Check every file against the manifest, load the model, run it once, say what was found."""
    try:
        described = manifest.read(chosen.model)
        engine = load(chosen, described)
        side = described.default_resolution
        begun = perf_counter()
        found = engine.session.run(np.zeros((1, 3, side, side), np.float32))
        seconds = perf_counter() - begun
        for name, array in found.items():
            if not np.isfinite(array).all():
                raise ModelInvalid(f"the model's {name} are not finite numbers.")
        shapes = {name: list(array.shape) for name, array in found.items()}
    except SidecarError as error:
        return complain(error)
    lines = [
        f"model        {described.model_id} at revision {described.revision}",
        f"recipe       {described.recipe}, projection {described.projection}",
        f"resolutions  {', '.join(map(str, described.resolutions))}",
        *(f"file         {name}, {file.bytes} bytes" for name, file in described.files.items()),
        *(f"output       {name} {shape}" for name, shape in shapes.items()),
        f"run          {side} x {side} in {seconds:.2f} s with onnxruntime "
        f"{session.VERSIONS['onnxruntime']}",
        f"kernels      {'on' if engine.kernels.on else 'off'}: {engine.kernels.why}",
        f"digest       {described.digest}",
        "The model directory is as it was built.",
    ]
    say(stdout, "".join(f"{line}\n" for line in lines).encode())
    return 0


def load(chosen: Settings, described: manifest.Manifest) -> Encoder:
    return encoder.load(
        chosen.model,
        described,
        chosen.threads or manners.cores(),
        chosen.limits.max_pixels,
        chosen.kernels,
    )


def say(stdout: BinaryIO, line: bytes) -> None:
    """Write where somebody may listen; whether or not they do, we go on."""
    with contextlib.suppress(OSError, ValueError):
        stdout.write(line)
        stdout.flush()


def complain(error: Exception, where: str = "") -> int:
    """One sentence on stderr; the exit code."""
    code = f"{error.code}: " if isinstance(error, SidecarError) else ""
    text = error.strerror if isinstance(error, OSError) else str(error)
    with contextlib.suppress(OSError, ValueError):
        print(f"{where}{': ' if where else ''}{code}{text}", file=sys.stderr)
    return FAILED


def _encode(engine: Encoder, image: Path, chosen: Settings) -> str:
    side = chosen.resolution
    job = Job(
        ImageFile(_read(image)),
        resolution=None if side is None else (side, side),
        outputs=(*OUTPUTS, HEATMAP_PNG),
    )
    encoding = engine.encode(job)
    png = encoding.arrays.pop(HEATMAP_PNG).tobytes()
    npz = BytesIO()
    np.savez(npz, allow_pickle=False, **encoding.arrays)
    _write(chosen.out / f"{image.stem}.npz", npz.getvalue())
    _write(chosen.out / f"{image.stem}.heatmap.png", png)
    height, width = encoding.resolution
    return (
        f"{height} x {width}, preprocessing {encoding.preprocess_ms:.0f} ms, "
        f"inference {encoding.inference_ms:.0f} ms"
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ImageUnreadable(f"the file cannot be read: {error.strerror}.") from error


def _write(path: Path, data: bytes) -> None:
    """All or nothing: a full disk must not leave half a file under its final name."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise OSError(error.errno, f"a result cannot be written: {error.strerror}") from None
