"""`VisionEncoder`: the runtime inside a Python program, without a server; see docs/python.md."""

import threading
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from sidecar import encoder, manifest
from sidecar.errors import ImageUnreadable, RequestMalformed
from sidecar.job import (
    HEATMAP_PNG,
    OUTPUTS,
    FloatArray,
    HeatmapOptions,
    ImageFile,
    Input,
    Job,
    Pixels,
    Tensor,
)
from sidecar.settings import Limits, Settings

Image = str | PathLike[str] | bytes | NDArray[np.uint8] | NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Encoding:
    """What the model makes of n images, as float32."""

    projected_embeddings: FloatArray  # [n, 256, text_hidden]: 16 x 16 tokens, row-major
    attention_scores: FloatArray  # [n, 256]: the tokens' norms, scaled to 0...1 within each image
    pooled_embedding: FloatArray  # [n, text_hidden]: the mean over the tokens
    resolution: tuple[int, int]  # height and width, in pixels, that the model saw
    norms: tuple[tuple[float, float], ...]  # per image, the least and the largest norm
    flat: tuple[bool, ...]  # per image, whether its norms differ too little to mean anything
    model: str  # SHA-256 of the model's manifest
    heatmap_png: bytes | None = None


class VisionEncoder:
    """A model directory, checked and loaded. Use as a context manager, or call `close`.

    May be used from several threads; one image is inferred at a time.
    Raises ModelInvalid where a file of the model is missing or changed.
    """

    def __init__(
        self,
        model: str | PathLike[str],
        *,
        threads: int = 0,
        kernels: Literal["auto", "off"] = "auto",
    ) -> None:
        """`threads` 0: one for each physical core. `kernels` "off": without this project's own."""
        settings = Settings(
            command="encode",
            model=Path(model),
            threads=threads,
            kernels=kernels,
            priority="normal",
            limits=Limits(),
        )
        self.manifest = manifest.read(settings.model)
        self._encoder = encoder.load(self.manifest, settings)
        self._one_at_a_time = threading.Lock()

    @property
    def kernels(self) -> str:
        """Whether the project's kernels run on this processor, and why, as a sentence."""
        custom_ops = self._encoder.choice.custom_ops
        return f"{'on' if custom_ops.on else 'off'}: {custom_ops.why}"

    def encode(
        self,
        image: Image,
        *,
        resolution: int | tuple[int, int] | None = None,
        heatmap: bool | HeatmapOptions = False,
    ) -> Encoding:
        """Encode one image, or a batch of normalised tensors.

        `image`: the path of a PNG, JPEG or WebP file; the bytes of one; uint8 [height, width, 3],
        RGB, upright; or float32 [n, 3, height, width], normalised as the manifest says.
        `resolution`: a side length or (height, width) in pixels; the model's own by default.

        Raises ImageUnreadable, ImageTooLarge, TensorShape, TensorNotFinite, RequestMalformed.
        """
        sides = (resolution, resolution) if isinstance(resolution, int) else resolution
        options = heatmap if isinstance(heatmap, HeatmapOptions) else HeatmapOptions()
        outputs = (*OUTPUTS, HEATMAP_PNG) if heatmap else OUTPUTS
        job = Job(_input(image), sides, outputs, options)
        with self._one_at_a_time:
            encoding = self._encoder.encode(job)
        arrays = encoding.arrays
        projected, scores, pooled = (
            arrays[name].astype(np.float32, copy=False) for name in OUTPUTS
        )
        return Encoding(
            projected_embeddings=projected,
            attention_scores=scores,
            pooled_embedding=pooled,
            resolution=encoding.resolution,
            norms=encoding.norms,
            flat=encoding.flat,
            model=self.manifest.digest,
            heatmap_png=arrays[HEATMAP_PNG].tobytes() if heatmap else None,
        )

    def close(self) -> None:
        """End the processes that decode images. The encoder takes no image afterwards."""
        self._encoder.decoders.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _input(image: Image) -> Input:
    if isinstance(image, bytes | bytearray | memoryview):
        return ImageFile(bytes(image))
    if isinstance(image, np.ndarray):
        if image.dtype == np.uint8:
            return Pixels(np.ascontiguousarray(image))
        if image.dtype == np.float32:
            return Tensor(np.ascontiguousarray(image))
        raise RequestMalformed(f"expected an array of uint8 or float32; {image.dtype} came.")
    if isinstance(image, str | PathLike):
        try:
            return ImageFile(Path(image).read_bytes())
        except OSError as error:
            raise ImageUnreadable(f"the file cannot be read: {error.strerror}.") from error
    raise RequestMalformed(
        f"expected a path, bytes, or an array of uint8 or float32; {type(image).__name__} came."
    )
