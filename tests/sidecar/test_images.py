"""Files of every odd kind become what a person sees, or are refused by code; then the numbers."""

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sidecar import image_header, images
from sidecar.errors import ImageTooLarge, ImageUnreadable, ResourcesExhausted, SidecarError
from sidecar.manifest import Normalisation
from tests.sidecar import messages

LIMIT = 64_000_000
RED, WHITE = [255, 0, 0], [255, 255, 255]


def picture(height: int = 40, width: int = 60) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def saved(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def raw_png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_lossless_pixels_come_back_as_they_were(kind: str) -> None:
    rgb = picture()
    np.testing.assert_array_equal(
        images.decode(saved(Image.fromarray(rgb), kind, lossless=True), LIMIT), rgb
    )


def rotated(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.new("RGB", (16, 8), "blue")
    image.paste((255, 0, 0), (0, 0, 8, 8))  # red on the left, as it is stored
    return saved(image, exif=exif)


@pytest.mark.parametrize(
    ("orientation", "shape", "red"),
    [
        (1, (8, 16), (0, 0)),
        (2, (8, 16), (0, 15)),
        (3, (8, 16), (0, 15)),
        (4, (8, 16), (0, 0)),
        (5, (16, 8), (0, 0)),
        (6, (16, 8), (0, 0)),
        (7, (16, 8), (15, 0)),
        (8, (16, 8), (15, 0)),
        (9, (8, 16), (0, 0)),  # there is none
    ],
)
def test_exif_orientation_is_applied(
    orientation: int, shape: tuple[int, int], red: tuple[int, int]
) -> None:
    rgb = images.decode(rotated(orientation), LIMIT)
    assert rgb.shape[:2] == shape
    assert rgb[red].tolist() == RED


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_does_not_spoil_the_pixels() -> None:
    data = saved(Image.fromarray(picture()), exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")
    np.testing.assert_array_equal(images.decode(data, LIMIT), picture())


def palette_with_alpha() -> Image.Image:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putdata([0, 1])
    image.info["transparency"] = 1
    return image


def grey_with_transparent_level() -> Image.Image:
    image = Image.new("L", (2, 1))
    image.putdata([0, 7])
    image.info["transparency"] = 7
    return image


TRANSPARENT = {
    "RGBA": (lambda: Image.fromarray(np.array([[[255, 0, 0, 255], [9, 9, 9, 0]]], np.uint8)), RED),
    "palette": (palette_with_alpha, RED),
    "grey": (grey_with_transparent_level, [0, 0, 0]),
    "grey and alpha": (
        lambda: Image.fromarray(np.array([[[0, 255], [9, 0]]], np.uint8), "LA"),
        [0, 0, 0],
    ),
}


@pytest.mark.parametrize(("make", "opaque"), TRANSPARENT.values(), ids=TRANSPARENT)
def test_transparency_lies_on_white(make: Callable[[], Image.Image], opaque: list[int]) -> None:
    rgb = images.decode(saved(make()), LIMIT)
    assert rgb[0, 0].tolist() == opaque
    assert rgb[0, 1].tolist() == WHITE


def test_half_transparent_red_on_white_is_pink() -> None:
    image = Image.new("RGBA", (1, 1), (255, 0, 0, 128))
    assert images.decode(saved(image), LIMIT)[0, 0].tolist() == [255, 127, 127]


def test_16_bit_grey_keeps_its_upper_bits() -> None:
    values = np.array([[0, 0x7FFF, 0xFFFF]], np.uint16)
    rgb = images.decode(saved(Image.fromarray(values)), LIMIT)
    assert rgb[0, :, 0].tolist() == [0, 0x7F, 0xFF]


@pytest.mark.parametrize(("colour", "channels"), [(2, 3), (6, 4)], ids=["RGB", "RGBA"])
def test_16_bit_colour_keeps_its_upper_bits(colour: int, channels: int) -> None:
    pixel = struct.pack(">4H", 0xFF00, 0x8001, 0x0100, 0xFFFF)[: 2 * channels]
    rgb = images.decode(raw_png(1, 1, 16, colour, b"\x00" + pixel), LIMIT)
    assert rgb[0, 0].tolist() == [0xFF, 0x80, 0x01]


@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_black_and_white_grey_and_palette_become_rgb(mode: str) -> None:
    image = Image.new("L", (4, 4), 255).convert(mode)
    assert images.decode(saved(image), LIMIT).tolist() == [[WHITE] * 4] * 4


def test_cmyk_becomes_the_colours_that_a_viewer_shows() -> None:
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    rgb = images.decode(saved(image, "JPEG", quality=100), LIMIT)
    assert np.abs(rgb[0, 0].astype(int) - RED).max() < 8


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_of_an_animation_the_first_frame_counts(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = saved(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
    assert images.decode(data, LIMIT)[4, 4].tolist() == RED


def test_of_a_jpeg_with_several_pictures_the_first_counts() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = saved(frames[0], "MPO", save_all=True, append_images=frames[1:])
    assert np.abs(images.decode(data, LIMIT)[4, 4].astype(int) - RED).max() < 8


def test_a_picture_is_converted_a_band_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    rgba = np.dstack([picture(41, 60), np.random.default_rng(1).integers(0, 256, (41, 60))])
    data = saved(Image.fromarray(rgba.astype(np.uint8)))
    whole = images.decode(data, LIMIT)
    bands: list[int] = []
    convert = images._opaque_band

    def band(image: Image.Image) -> np.ndarray:
        bands.append(image.height)
        return convert(image)

    monkeypatch.setattr(images, "_opaque_band", band)
    for pixels, heights in ((600, [10, 10, 10, 10, 1]), (60, [1] * 41), (1, [1] * 41 * 60)):
        bands.clear()
        monkeypatch.setattr(images, "BAND", pixels)
        np.testing.assert_array_equal(images.decode(data, LIMIT), whole)
        assert bands == heights


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_the_number_of_pixels_is_told_before_they_are_decoded(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []
    images.decode(saved(Image.fromarray(picture(9, 7)), kind), LIMIT, told.append)
    assert set(told) == {63}
    larger = saved(Image.fromarray(picture(90, 70)), kind)
    told.clear()
    with pytest.raises(ImageUnreadable):
        images.decode(larger[:-400], LIMIT, told.append)
    assert set(told) == {6300}
    told.clear()
    with pytest.raises(ImageTooLarge):
        images.decode(larger, 6299, told.append)
    assert told == []
    # A header that only Pillow understands.
    monkeypatch.setattr(image_header, "size", lambda _: None)
    images.decode(saved(Image.fromarray(picture(9, 7)), kind), LIMIT, told.append)
    assert told == [63]
    with pytest.raises(ImageTooLarge):
        images.decode(larger, 6299, told.append)


def test_out_of_memory_is_no_fault_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(images, "_opaque_band", fail)
    with pytest.raises(ResourcesExhausted):
        images.decode(saved(Image.fromarray(picture())), LIMIT)


def test_what_is_said_of_each_was_reviewed() -> None:
    jpeg = saved(Image.fromarray(picture()), "JPEG")
    comment = b"\xff\xfe\x00\x02"
    scan = b"\xff\xda\x00\x02"
    files = {
        "no image": b"text",
        "cut short": saved(Image.fromarray(picture()))[:200],
        "no pixels": raw_png(0, 5, 8, 2, b""),
        "more pixels than allowed": raw_png(8000, 8001, 8, 2, b""),
        "a JPEG of many scans": jpeg[:2] + scan * 101 + jpeg[2:],
        "a JPEG of many segments": jpeg[:2] + comment * 100_001 + jpeg[2:],
    }
    said = {}
    for name, data in files.items():
        with pytest.raises(SidecarError) as refused:
            images.decode(data, LIMIT)
        said[name] = f"{refused.value.code}: {refused.value}"
    messages.check("images", said)


@pytest.mark.parametrize("shape", [(1, 5000), (5000, 1), (1, 1)], ids=str)
def test_the_thinnest_images_are_images(shape: tuple[int, int]) -> None:
    rgb = images.decode(saved(Image.fromarray(picture(*shape))), LIMIT)
    assert images.to_pixel_values(rgb, 224, 224, Normalisation()).shape == (1, 3, 224, 224)


def test_more_pixels_than_allowed_are_refused_before_they_are_decoded() -> None:
    bomb = raw_png(60_000, 60_000, 8, 2, b"")  # 10 GB, if anything decoded it
    with pytest.raises(ImageTooLarge, match="60000 x 60000"):
        images.decode(bomb, LIMIT)


def test_exactly_as_many_pixels_as_allowed_are_taken() -> None:
    data = saved(Image.fromarray(picture(10, 10)))
    assert images.decode(data, 100).shape == (10, 10, 3)
    with pytest.raises(ImageTooLarge):
        images.decode(data, 99)


def test_a_jpeg_of_a_thousand_scans_is_refused() -> None:
    data = saved(Image.fromarray(picture()), "JPEG", progressive=True)
    scan = data.rindex(b"\xff\xda")
    with pytest.raises(ImageUnreadable, match="scans"):
        images.decode(data[:-2] + data[scan:-2] * 1000 + b"\xff\xd9", LIMIT)


def text_bomb() -> bytes:
    data = saved(Image.fromarray(picture()))
    bomb = chunk(b"zTXt", b"Comment\x00\x00" + zlib.compress(bytes(2**26)))
    return data[:33] + bomb + data[33:]


DAMAGED = {
    "nothing": b"",
    "text": b"Dear colleague, see the attached page.",
    "a PNG signature alone": b"\x89PNG\r\n\x1a\n",
    "a JPEG signature alone": b"\xff\xd8\xff",
    "a PNG cut short": saved(Image.fromarray(picture()))[:-800],
    "a JPEG cut short": saved(Image.fromarray(picture()), "JPEG")[:-400],
    "a WebP cut short": saved(Image.fromarray(picture()), "WEBP", lossless=True)[:-400],
    "a GIF": saved(Image.fromarray(picture()), "GIF"),
    "a BMP": saved(Image.fromarray(picture()), "BMP"),
    "a TIFF": saved(Image.fromarray(picture()), "TIFF"),
    "a PNG without a column": raw_png(0, 5, 8, 2, b"\x00" * 5),
    "a PNG without a row": raw_png(5, 0, 8, 2, b""),
    "a PNG whose text is a bomb": text_bomb(),
}


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED)
def test_what_is_no_image_is_refused_in_a_sentence(data: bytes) -> None:
    with pytest.raises(ImageUnreadable) as refused:
        images.decode(data, LIMIT)
    assert str(refused.value).endswith(".")


GOOD = [saved(Image.fromarray(picture(9, 7)), kind) for kind in ("PNG", "JPEG", "WEBP")] + [
    saved(palette_with_alpha()),
    rotated(6),
]


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(GOOD),
    st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=8),
    st.integers(0, 2000),
)
def test_a_damaged_file_gives_an_image_within_bounds_or_one_of_our_errors(
    data: bytes, changes: list[tuple[int, int]], length: int
) -> None:
    damaged = bytearray(data)
    for at, value in changes:
        damaged[at % len(damaged)] = value
    try:
        rgb = images.decode(bytes(damaged[:length]), 10_000)
    except SidecarError:
        return
    assert rgb.dtype == np.uint8
    assert rgb.ndim == 3
    assert rgb.shape[2] == 3
    assert 0 < rgb.size <= 30_000


@pytest.mark.parametrize("side", [224, 448, 896])
@pytest.mark.parametrize("shape", [(100, 130), (896, 896), (1000, 700), (1, 9)], ids=str)
def test_the_numbers_are_those_of_transformers_bit_for_bit(
    side: int, shape: tuple[int, int]
) -> None:
    transformers = pytest.importorskip("transformers")
    processor = transformers.Gemma3ImageProcessorPil(size={"height": side, "width": side})
    rgb = picture(*shape)
    theirs = processor(Image.fromarray(rgb), do_pan_and_scan=False, return_tensors="np")
    ours = images.to_pixel_values(rgb, side, side, Normalisation())
    np.testing.assert_array_equal(
        ours.view(np.uint32), np.asarray(theirs["pixel_values"], np.float32).view(np.uint32)
    )
