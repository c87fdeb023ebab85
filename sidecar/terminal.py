"""The commands that a person runs in a terminal: `encode` and `verify`. No server, no queue."""

from io import BytesIO
from pathlib import Path
from time import perf_counter
from typing import BinaryIO

import numpy as np

from sidecar import encoder, engine, files, manifest, session
from sidecar.console import FAILED, complain, say
from sidecar.encoder import Encoder
from sidecar.engine import Choice
from sidecar.errors import ModelInvalid, SidecarError
from sidecar.job import HEATMAP_PNG, OUTPUTS, ImageFile, Job
from sidecar.settings import Settings


def encode(settings: Settings, stdout: BinaryIO) -> int:
    """Write `<stem>.npz` (the OUTPUTS) and `<stem>.heatmap.png` for each image. One that fails does
    not stop the others. Returns the exit code.
    """
    stems = [image.stem.casefold() for image in settings.images]
    if len(set(stems)) < len(stems):
        return complain(ValueError("two images have the same name; encode them one after another."))
    try:
        loaded = encoder.load(manifest.read(settings.model), settings)
        settings.out.mkdir(parents=True, exist_ok=True)
    except (SidecarError, OSError) as error:
        return complain(error)
    failures = 0
    for number, image in enumerate(settings.images, 1):
        where = f"image {number} of {len(settings.images)}"
        try:
            say(stdout, f"{where}: {_encode(loaded, image, settings)}\n".encode())
        except (SidecarError, OSError) as error:
            failures += 1
            complain(error, where)
    return FAILED if failures else 0


def verify(settings: Settings, stdout: BinaryIO) -> int:
    """Check every file against the manifest, load the model, run it once at each resolution, and
    print the figures. Returns the exit code.
    """
    try:
        described = manifest.read(settings.model)
        loaded = encoder.load(described, settings)
        choice = loaded.choice
        seconds = {side: _seconds(loaded, side) for side in described.resolutions}
    except SidecarError as error:
        return complain(error)
    lines = [
        f"model        {described.model_id} at revision {described.revision}",
        f"recipe       {described.recipe}, projection {described.projection}",
        f"resolutions  {', '.join(map(str, described.resolutions))}",
        *(f"file         {name}, {file.bytes} bytes" for name, file in described.files.items()),
        *(
            f"output       {name} {list(shape)}"
            for name, shape in engine.output_shapes(described).items()
        ),
        f"onnxruntime  {session.VERSIONS['onnxruntime']}",
        *(f"run          {side} x {side} in {spent:.2f} s" for side, spent in seconds.items()),
        f"kernels      {'on' if choice.custom_ops.on else 'off'}: {choice.custom_ops.why}",
        f"check        {_figures(choice)}",
        f"digest       {described.digest}",
        "The model directory is as it was built.",
    ]
    say(stdout, "".join(f"{line}\n" for line in lines).encode())
    return 0


def _seconds(loaded: Encoder, side: int) -> float:
    """How long an image of that side takes. Raises ModelInvalid, and what onnxruntime raises."""
    begun = perf_counter()
    outputs = loaded.session.run(np.zeros((1, 3, side, side), np.float32))
    seconds = perf_counter() - begun
    for name, array in outputs.items():
        if not np.isfinite(array).all():
            raise ModelInvalid(f"the model's {name} are not finite numbers.")
    return seconds


def _figures(choice: Choice) -> str:
    """What the golden input gave, as a sentence."""
    check = choice.check
    how = f"{choice.graph} gave equal numbers for the golden input twice"
    if check.pooled_cosine is None or check.heatmap_r is None:
        how += "; the model has no record to compare with"
    else:
        how += (
            f", with cosine {check.pooled_cosine:.6f} (pooled) and r {check.heatmap_r:.6f} "
            "(heatmap) to where it was built"
        )
    if not choice.kleidiai:
        how += f"; only without KleidiAI{', and on one thread' if choice.threads == 1 else ''}"
    return f"{how}."


def _encode(loaded: Encoder, image: Path, settings: Settings) -> str:
    side = settings.resolution
    job = Job(
        ImageFile(files.read(image)),
        resolution=None if side is None else (side, side),
        outputs=(*OUTPUTS, HEATMAP_PNG),
    )
    encoding = loaded.encode(job)
    png = encoding.arrays.pop(HEATMAP_PNG).tobytes()
    npz = BytesIO()
    np.savez(npz, allow_pickle=False, **encoding.arrays)
    files.write(settings.out / f"{image.stem}.npz", npz.getvalue())
    files.write(settings.out / f"{image.stem}.heatmap.png", png)
    height, width = encoding.resolution
    return (
        f"{height} x {width}, preprocessing {encoding.preprocess_ms:.0f} ms, "
        f"inference {encoding.inference_ms:.0f} ms"
        f"{'; nothing stands out' if encoding.flat[0] else ''}"
    )
