"""From an input of any kind to the arrays that were asked for: preprocess, run, draw."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sidecar import engine, image_header, norms, priority
from sidecar.decoder import Decoders, Picture
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
from sidecar.normalise import normalise
from sidecar.session import Run, Session
from sidecar.settings import Settings


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A job with its `pixel_values`, the picture to draw the heatmap over, and what that took."""

    job: Job
    pixel_values: PixelValues
    picture: Picture
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
    drawing_ms: float  # 0 where no heatmap was asked for
    norms: tuple[tuple[float, float], ...] = ()
    flat: tuple[bool, ...] = ()


class Encoder:
    """A session, why it is that one, the manifest that says how to feed it, and the decoder
    processes.
    """

    def __init__(
        self,
        session: Session,
        choice: Choice,
        manifest: Manifest,
        decoders: Decoders,
        max_pixels: int,
    ) -> None:
        self.session = session
        self.choice = choice
        self.manifest = manifest
        self.decoders = decoders
        self.max_pixels = max_pixels

    def encode(self, job: Job) -> Encoding:
        """`prepare`, then `infer`."""
        run = Run()
        return self.infer(self.prepare(job, run), run)

    def thumbnail(self, data: bytes, side: int) -> Rgb:
        """The image of a file, stretched to [side, side, 3]. Raises the errors of Picture."""
        with Picture(self.decoders, self.max_pixels) as picture:
            how = self.manifest.normalisation.resample
            return picture.prepare(ImageFile(data), (side, side), how, keep=False)

    def prepare(self, job: Job, run: Run) -> Prepared:
        """The first half, which needs no session, and may be done while another job's images are
        inferred. What is prepared is to be inferred, or its `run` terminated: until then it may
        occupy a decoder process. Raises the errors of `Picture.prepare`, and TensorShape,
        TensorNotFinite, RequestUnsupported.
        """
        begun = time.perf_counter()
        picture = Picture(self.decoders, self.max_pixels)
        run.on_terminate(picture.cancel)
        pixel_values = self._preprocess(job, picture)
        return Prepared(job, pixel_values, picture, (time.perf_counter() - begun) * 1e3)

    def infer(self, prepared: Prepared, run: Run) -> Encoding:
        """The second half. Raises the errors of `session` and of `Picture.draw`, and
        TensorNotFinite.
        """
        with prepared.picture:
            return self._infer_and_draw(prepared, run)

    def _infer_and_draw(self, prepared: Prepared, run: Run) -> Encoding:
        job, pixel_values = prepared.job, prepared.pixel_values
        run.check()
        begun = time.perf_counter()
        outputs = self._infer(pixel_values, run)
        inferred = time.perf_counter()
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
        drawing_ms = 0.0
        if HEATMAP_PNG in job.outputs:
            begun_drawing = time.perf_counter()
            scores = outputs["attention_scores"][0]
            shown = (job.heatmap, low_high[0], bool(flat[0]))
            png = prepared.picture.draw(scores, (height, width), *shown)
            arrays[HEATMAP_PNG] = np.frombuffer(png, np.uint8)
            drawing_ms = (time.perf_counter() - begun_drawing) * 1e3
        return Encoding(
            arrays={name: arrays[name] for name in job.outputs},
            resolution=(height, width),
            images=len(pixel_values),
            preprocess_ms=prepared.ms,
            inference_ms=(inferred - begun) * 1e3,
            drawing_ms=drawing_ms,
            norms=tuple(low_high),
            flat=tuple(flat.tolist()),
        )

    def _preprocess(self, job: Job, picture: Picture) -> PixelValues:
        if isinstance(job.input, Tensor):
            tensor = job.input.pixel_values
            self._check_tensor(tensor, job.resolution)
            if HEATMAP_PNG in job.outputs and len(tensor) > 1:
                raise RequestUnsupported(
                    f"heatmap_png is drawn for one image at a time; {len(tensor)} came."
                )
            return tensor
        if isinstance(job.input, Pixels):
            self._check_rgb(job.input)
        side = self.manifest.default_resolution
        resolution = self._check_resolution(job.resolution or (side, side))
        how = self.manifest.normalisation
        keep = HEATMAP_PNG in job.outputs
        return normalise(picture.prepare(job.input, resolution, how.resample, keep), how)

    def _check_rgb(self, source: Pixels) -> None:
        rgb = source.rgb
        if rgb.ndim != 3 or rgb.shape[2] != 3 or 0 in rgb.shape:
            raise TensorShape(
                f"expected rgb of shape [height, width, 3], none of them 0; "
                f"{_shape(rgb.shape)} came."
            )
        height, width = rgb.shape[:2]
        image_header.check_size(width, height, self.max_pixels)

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
    computes on this machine what it computed where it was built; the decoder processes start
    meanwhile. Raises ModelInvalid, ModelUnfaithful, ResourcesExhausted,
    Internal.
    """
    decoders = Decoders()
    threads = settings.threads or priority.physical_cores()
    try:
        with ModelFiles(settings.model, manifest) as files:
            session, choice = engine.select(files, threads, settings.kernels)
            files.check_unchanged()
        decoders.wait_until_ready()
    except BaseException:
        decoders.close()
        raise
    return Encoder(session, choice, manifest, decoders, settings.limits.max_pixels)


def _shape(shape: Sequence[int]) -> str:
    return f"[{', '.join(map(str, shape))}]"
