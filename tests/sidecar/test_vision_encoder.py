"""The runtime as a Python class: the same results as the process, the same errors."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sidecar.errors import ImageUnreadable, ModelInvalid, RequestMalformed, TensorShape
from sidecar.job import HeatmapOptions
from sidecar.vision_encoder import VisionEncoder
from tests.client import StdioClient

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "examples" / "ecg.png"


@pytest.fixture(scope="module")
def encoder(model: Path) -> Iterator[VisionEncoder]:
    with VisionEncoder(model, threads=1) as encoder:
        yield encoder


def test_a_path_gives_what_the_process_gives(encoder: VisionEncoder, model: Path) -> None:
    encoding = encoder.encode(PAGE)
    with StdioClient(model, "--threads", "1") as process:
        arrays = process.ask("encode", {"image": PAGE.read_bytes()}).arrays
    for name, array in arrays.items():
        np.testing.assert_allclose(getattr(encoding, name), array, rtol=1e-5, atol=1e-6)
    assert encoding.model == encoder.manifest.digest


def test_bytes_and_pixels_of_the_same_image_give_the_same(encoder: VisionEncoder) -> None:
    with Image.open(PAGE) as page:
        pixels = np.asarray(page.convert("RGB"))
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    from_bytes = encoder.encode(buffer.getvalue(), resolution=224)
    from_pixels = encoder.encode(pixels, resolution=(224, 224))
    np.testing.assert_array_equal(from_bytes.pooled_embedding, from_pixels.pooled_embedding)
    assert from_bytes.resolution == (224, 224)


def test_a_batch_of_tensors_gives_a_row_for_each(encoder: VisionEncoder) -> None:
    tensors = np.zeros((2, 3, 224, 224), np.float32)
    encoding = encoder.encode(tensors)
    assert encoding.attention_scores.shape == (2, 256)
    assert encoding.flat == (True, True)


def test_the_heatmap_is_a_png_and_only_there_when_asked_for(encoder: VisionEncoder) -> None:
    assert encoder.encode(PAGE, resolution=224).heatmap_png is None
    options = HeatmapOptions(legend=False)
    png = encoder.encode(PAGE, resolution=224, heatmap=options).heatmap_png
    assert png is not None
    with Image.open(io.BytesIO(png)) as drawn, Image.open(PAGE) as page:
        assert drawn.size == page.size


@pytest.mark.parametrize(
    ("image", "error"),
    [
        ("no such file.png", ImageUnreadable),
        (b"no image", ImageUnreadable),
        (np.zeros((4, 4), np.uint8), TensorShape),
        (np.zeros((4, 4, 3), np.int64), RequestMalformed),
        (42, RequestMalformed),
    ],
    ids=["a path to nothing", "bytes of no image", "a flat array", "another dtype", "a number"],
)
def test_what_is_no_image_is_refused(encoder: VisionEncoder, image: Any, error: type) -> None:
    with pytest.raises(error):
        encoder.encode(image)


def test_a_directory_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelInvalid):
        VisionEncoder(tmp_path)
