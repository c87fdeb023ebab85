"""The size that a file's header says, and what there is too much of, without decoding."""

import io
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sidecar import image_header
from tests.attack import hostile_images
from tests.attack.hostile_images import EOI, SOI, saved, segment
from tests.sidecar.test_images import GOOD

IMAGE = Image.effect_noise((70, 40), 60).convert("RGB")
ALPHA = IMAGE.convert("RGBA")
EXIF = Image.Exif()
EXIF[0x0112] = 6

FILES = {
    "PNG": saved(IMAGE, "PNG"),
    "JPEG": saved(IMAGE, "JPEG"),
    "progressive JPEG": saved(IMAGE, "JPEG", progressive=True),
    "JPEG with EXIF and a comment": saved(IMAGE, "JPEG", exif=EXIF, comment=b"\xff\xc0" * 999),
    "JPEG of several pictures": saved(IMAGE, "MPO", save_all=True, append_images=[IMAGE]),
    "lossy WebP": saved(IMAGE, "WEBP"),
    "lossless WebP": saved(IMAGE, "WEBP", lossless=True),
    "WebP with alpha": saved(ALPHA, "WEBP"),
    "WebP with EXIF": saved(IMAGE, "WEBP", exif=EXIF),
}


@pytest.mark.parametrize("data", FILES.values(), ids=FILES)
def test_the_size_is_the_one_that_a_decoder_finds(data: bytes) -> None:
    assert image_header.size(memoryview(data)) == (70, 40)
    assert image_header.is_known(data)


@pytest.mark.parametrize(
    "make",
    [
        lambda: b"",
        lambda: b"Dear colleague",
        lambda: saved(IMAGE, "GIF"),
        lambda: hostile_images.jpeg_fill(0.01),
        lambda: hostile_images.jpeg_segments(0.01),
        lambda: FILES["JPEG"][:20],
        lambda: FILES["lossy WebP"][:20],
        lambda: SOI + segment(0xC0, b"\x08") + EOI,
    ],
    ids=[
        "nothing",
        "text",
        "GIF",
        "fill",
        "segments",
        "cut JPEG",
        "cut WebP",
        "short frame header",
    ],
)
def test_no_size_is_told_of(make: Callable[[], bytes]) -> None:
    assert image_header.size(make()) is None


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(GOOD), st.integers(0, 60), st.integers(0, 255), st.integers(0, 400))
def test_no_damage_raises(data: bytes, at: int, value: int, length: int) -> None:
    damaged = bytearray(data)
    damaged[at % len(damaged)] = value
    image_header.size(damaged[:length])
    image_header.jpeg_excess(damaged[:length])


def test_scans_and_segments_count_up_to_the_end_of_the_first_picture() -> None:
    many = hostile_images.jpeg_scans(0.0001, scans=image_header.MAX_SCANS + 1)
    assert image_header.jpeg_excess(many) == "scans"
    assert image_header.jpeg_excess(hostile_images.jpeg_scans(0.0001, scans=100)) is None
    assert image_header.jpeg_excess(hostile_images.jpeg_segments(0.001)) == "segments"
    assert image_header.jpeg_excess(FILES["JPEG"] + many) is None
    assert image_header.jpeg_excess(FILES["PNG"] + many) is None


def test_a_scan_that_looks_like_one_inside_of_a_segment_is_none() -> None:
    comment = saved(IMAGE, "JPEG", comment=b"\xff\xda\x00\x08" * 200)
    assert image_header.jpeg_excess(comment) is None
    file = io.BytesIO()
    IMAGE.save(file, "JPEG", restart_marker_blocks=1)
    assert image_header.jpeg_excess(file.getvalue()) is None
