"""An encoded image file or RGB pixels become `pixel_values`. The only decoder, and its limits.

The arithmetic is that of Transformers' PIL processor for Gemma 3, bit for bit.
"""

from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, MpoImagePlugin, WebPImagePlugin

from sidecar.errors import ImageTooLarge, ImageUnreadable, SidecarError, exhausted
from sidecar.job import PixelValues, Rgb
from sidecar.manifest import Normalisation

FORMATS = ("PNG", "JPEG", "WEBP")

# Pillow would load its decoders at the first image; by then an update may have replaced our files.
Image.preinit()  # PNG, JPEG and a few more
DECODERS = (MpoImagePlugin, WebPImagePlugin)  # JPEG with several images, and WebP

Image.MAX_IMAGE_PIXELS = None  # `decode` applies a stricter bound, as an error, before any pixel

MAX_SCANS = 100  # of a JPEG; each costs a pass over the image, and a progressive one has about ten


def decode(data: bytes | memoryview, max_pixels: int) -> Rgb:
    """Decode a PNG, JPEG or WebP file, known by its content, into RGB of shape [height, width, 3].

    EXIF orientation is applied, transparency lies on white, 16-bit grey keeps its upper 8 bits, and
    of an animation the first frame counts. Raises ImageUnreadable, ImageTooLarge,
    ResourcesExhausted.
    """
    if data[:2] == b"\xff\xd8" and bytes(data).count(b"\xff\xda") > MAX_SCANS:
        raise ImageUnreadable(f"the JPEG has more than {MAX_SCANS} scans. Save it again.")
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as image:
            check_size(image.width, image.height, max_pixels)
            image.load()
            return np.asarray(_opaque_rgb(_upright(image)))
    except SidecarError:
        raise
    except Exception as error:  # on hostile bytes Pillow's decoders raise far more than OSError
        raise exhausted(error) or ImageUnreadable(_why_unreadable(data)) from error


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Raises ImageUnreadable, ImageTooLarge, before anything is decoded or copied."""
    if width < 1 or height < 1:
        raise ImageUnreadable(f"the image is {width} x {height} pixels; it has none.")
    if width * height > max_pixels:
        raise ImageTooLarge(
            f"the image has {width} x {height} pixels, more than the {max_pixels} allowed. "
            "Scale it down first."
        )


def to_pixel_values(rgb: Rgb, height: int, width: int, how: Normalisation) -> PixelValues:
    """Resize and normalise [h, w, 3] RGB into [1, 3, height, width]; the aspect is not kept."""
    resample = Image.Resampling[how.resample.upper()]
    resized = rgb
    if rgb.shape[:2] != (height, width):
        resized = np.asarray(Image.fromarray(rgb).resize((width, height), resample))
    levels = _levels(how)
    out = np.empty((1, 3, height, width), np.float32)
    for channel in range(3):
        # No byte is out of range; to make sure of it, numpy would fill a buffer first.
        np.take(levels[channel], resized[:, :, channel], out=out[0, channel], mode="clip")
    return out


def _levels(how: Normalisation) -> NDArray[np.float32]:
    """What each of the 256 byte values becomes, [3, 256]: a table gives the same bits, sooner.

    Transformers rescales in float64 and normalises in float32; so does this.
    """
    rescaled = (np.arange(256, dtype=np.float64) * how.rescale).astype(np.float32)
    mean = np.array(how.mean, np.float32)[:, None]
    std = np.array(how.std, np.float32)[:, None]
    levels: NDArray[np.float32] = (rescaled[None] - mean) / std
    return levels


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # broken EXIF says nothing of the pixels; viewers ignore it too
        return image


def _opaque_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion would clip it to white
        grey = np.asarray(image).astype(np.uint32) >> 8
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _why_unreadable(data: bytes | memoryview) -> str:
    start = bytes(data[:12])
    known = (
        start.startswith(b"\x89PNG\r\n\x1a\n")
        or start.startswith(b"\xff\xd8\xff")
        or (start[:4] == b"RIFF" and start[8:12] == b"WEBP")
    )
    if known:
        return "the image file is damaged or cut short. Open it in a viewer, and save it again."
    return "expected the bytes of a PNG, JPEG or WebP file; these are not. Convert the image first."
