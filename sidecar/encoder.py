"""From an input of any kind to the arrays that were asked for: preprocess, run, draw."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sidecar import engine, heatmap, images, norms, priority
from sidecar.engine import Choice
from sidecar.errors import RequestUnsupported, TensorNotFinite, TensorShape
from sidecar.job import (
    HEATMAP_PNG,
    OUTPUTS,
    FloatArray,
    ImageFile,
    Job,
    Pixels,
    PixelValues,
    Rgb,
    Tensor,
)
from sidecar.manifest import Manifest
from sidecar.model_files import ModelFiles
from sidecar.session import Run, Session
from sidecar.settings import Settings


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A job with its `pixel_values`, the picture to draw the heatmap over, and what that took."""

    job: Job
    pixel_values: PixelValues
    over: Rgb | None
    ms: float


@dataclass(frozen=True, slots=True)
class Encoding:
    """`arrays` in the order they were asked for; `heatmap_png` holds the bytes of a file.

    For each image, `norms` holds the least and the largest norm of its tokens, and `flat` whether
    they differ too little to mean anything.
    """

    arrays: dict[str, FloatArray | NDArray[np.uint8]]
    resolution: tuple[int, int]
    images: int
    preprocess_ms: float
    inference_ms: float
    norms: tuple[tuple[float, float], ...] = ()
    flat: tuple[bool, ...] = ()


class Encoder:
    """A session, why it is that one, and the manifest that says how to feed it."""

    def __init__(
        self, session: Session, choice: Choice, manifest: Manifest, max_pixels: int
    ) -> None:
        self.session = session
        self.choice = choice
        self.manifest = manifest
        self.max_pixels = max_pixels

    def encode(self, job: Job) -> Encoding:
        """`prepare`, then `infer`."""
        return self.infer(self.prepare(job), Run())

    def prepare(self, job: Job) -> Prepared:
        """The first half, which needs no session, and may be done while another job's images are
        inferred. Raises the errors of `images`, and TensorShape, TensorNotFinite,
        RequestUnsupported.
        """
        begun = time.perf_counter()
        pixel_values, over = self._preprocess(job)
        return Prepared(job, pixel_values, over, (time.perf_counter() - begun) * 1e3)

    def infer(self, prepared: Prepared, run: Run) -> Encoding:
        """The second half. Raises the errors of `session`, and TensorNotFinite."""
        job, pixel_values, over = prepared.job, prepared.pixel_values, prepared.over
        run.check()
        begun = time.perf_counter()
        outputs = self._infer(pixel_values, run)
        done = time.perf_counter()
        if not all(np.isfinite(array).all() for array in outputs.values()):
            raise TensorNotFinite(
                "the model's outputs are not finite numbers for this input. Check its "
                "preprocessing: pixels / 255, less mean, over std."
            )
        height, width = pixel_values.shape[2:]
        ranges = norms.ranges(outputs["projected_embeddings"])
        flat = norms.are_flat(ranges, self.manifest.flat, (height, width))
        low_high = [(float(low), float(high)) for low, high in ranges]
        arrays: dict[str, FloatArray | NDArray[np.uint8]] = {**outputs}
        if HEATMAP_PNG in job.outputs:
            picture = over if over is not None else np.full((height, width, 3), 255, np.uint8)
            scores = outputs["attention_scores"][0]
            png = heatmap.draw(scores, picture, job.heatmap, low_high[0], bool(flat[0]))
            arrays[HEATMAP_PNG] = np.frombuffer(png, np.uint8)
        return Encoding(
            arrays={name: arrays[name] for name in job.outputs},
            resolution=(height, width),
            images=len(pixel_values),
            preprocess_ms=prepared.ms,
            inference_ms=(done - begun) * 1e3,
            norms=tuple(low_high),
            flat=tuple(flat.tolist()),
        )

    def _preprocess(self, job: Job) -> tuple[PixelValues, Rgb | None]:
        if isinstance(job.input, Tensor):
            tensor = job.input.pixel_values
            self._check_tensor(tensor, job.resolution)
            if HEATMAP_PNG in job.outputs and len(tensor) > 1:
                raise RequestUnsupported(
                    f"heatmap_png is drawn for one image at a time; {len(tensor)} came."
                )
            return tensor, None
        rgb = self._rgb(job.input)
        side = self.manifest.default_resolution
        height, width = self._check_resolution(job.resolution or (side, side))
        pixel_values = images.to_pixel_values(rgb, height, width, self.manifest.normalisation)
        return pixel_values, rgb

    def _rgb(self, source: ImageFile | Pixels) -> Rgb:
        if isinstance(source, ImageFile):
            return images.decode(source.data, self.max_pixels)
        rgb = source.rgb
        if rgb.ndim != 3 or rgb.shape[2] != 3 or 0 in rgb.shape:
            raise TensorShape(
                f"expected rgb of shape [height, width, 3], none of them 0; "
                f"{_shape(rgb.shape)} came."
            )
        height, width = rgb.shape[:2]
        images.check_size(width, height, self.max_pixels)
        return rgb

    def _infer(self, pixel_values: PixelValues, run: Run) -> dict[str, FloatArray]:
        # One image at a time: the 8-bit scales of an activation span the whole tensor, so images
        # of a batch would change each other's results, and a batch would cost memory, not time.
        runs = [self.session.run(pixel_values[i : i + 1], run) for i in range(len(pixel_values))]
        if len(runs) == 1:
            return dict(runs[0])
        return {name: np.concatenate([arrays[name] for arrays in runs]) for name in OUTPUTS}

    def _check_tensor(self, tensor: PixelValues, resolution: tuple[int, int] | None) -> None:
        if tensor.ndim != 4 or tensor.shape[0] < 1 or tensor.shape[1] != 3:
            raise TensorShape(
                f"expected pixel_values of shape [n, 3, height, width], n at least 1; "
                f"{_shape(tensor.shape)} came."
            )
        height, width = tensor.shape[2:]
        self._check_resolution((height, width))
        if resolution is not None and resolution != (height, width):
            raise TensorShape(
                f"pixel_values are {height} x {width} but params.resolution says "
                f"{resolution[0]} x {resolution[1]}. Leave resolution out, or make them agree."
            )
        if not np.isfinite(tensor).all():
            raise TensorNotFinite(
                "pixel_values hold NaN or infinity. Check the preprocessing: pixels / 255, less "
                "mean, over std."
            )

    def _check_resolution(self, resolution: tuple[int, int]) -> tuple[int, int]:
        allowed = self.manifest.resolutions
        if any(side not in allowed for side in resolution):
            raise TensorShape(
                f"height and width must each be one of {', '.join(map(str, allowed))} for this "
                f"model; {resolution[0]} x {resolution[1]} came."
            )
        return resolution


def load(manifest: Manifest, settings: Settings) -> Encoder:
    """Check every file of the model directory against its manifest, and load the best graph that
    computes on this machine what it computed where it was built. Raises ModelInvalid,
    ModelUnfaithful, ResourcesExhausted.
    """
    threads = settings.threads or priority.physical_cores()
    with ModelFiles(settings.model, manifest) as files:
        session, choice = engine.select(files, threads, settings.kernels)
        files.check_unchanged()
    return Encoder(session, choice, manifest, settings.limits.max_pixels)


def _shape(shape: Sequence[int]) -> str:
    return f"[{', '.join(map(str, shape))}]"
