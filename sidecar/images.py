"""An encoded image file becomes RGB, and RGB becomes `pixel_values`. The only decoder.

The arithmetic is that of Transformers' PIL processor for Gemma 3, bit for bit. Files are hostile
until they are decoded, so the sidecar runs `decode` and `resize` in the decoder process only.
"""

from collections.abc import Callable
from io import BytesIO

import numpy as np
from PIL import ExifTags, Image, MpoImagePlugin, WebPImagePlugin

from sidecar import image_header
from sidecar.errors import ImageUnreadable, SidecarError, exhausted
from sidecar.job import PixelValues, Rgb
from sidecar.manifest import Normalisation
from sidecar.normalise import normalise

FORMATS = ("PNG", "JPEG", "WEBP")

# Pillow would load its decoders at the first image; by then an update may have replaced our files.
Image.preinit()  # PNG, JPEG and a few more
DECODERS = (MpoImagePlugin, WebPImagePlugin)  # JPEG with several images, and WebP

Image.MAX_IMAGE_PIXELS = None  # `decode` applies a stricter bound, as an error, before any pixel

BAND = 2**20  # pixels that are converted at a time, so that a conversion costs no second picture

_TURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(
    data: bytes | memoryview,
    max_pixels: int,
    before_pixels: Callable[[int], None] = lambda _pixels: None,
) -> Rgb:
    """Decode a PNG, JPEG or WebP file, known by its content, into RGB of shape [height, width, 3].

    EXIF orientation is applied, transparency lies on white, 16-bit grey keeps its upper 8 bits, and
    of an animation the first frame counts. `before_pixels` is told how many pixels the file has,
    before they are decoded. Raises ImageUnreadable, ImageTooLarge, ResourcesExhausted.
    """
    excess = image_header.jpeg_excess(data)
    if excess is not None:
        limits = {"scans": image_header.MAX_SCANS, "segments": image_header.MAX_SEGMENTS}
        raise ImageUnreadable(f"the JPEG has more than {limits[excess]} {excess}. Save it again.")
    stated = image_header.size(data)
    if stated is not None:  # WebP's decoder takes memory for all pixels when it is opened
        image_header.check_size(*stated, max_pixels)
        before_pixels(stated[0] * stated[1])
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as image:
            image_header.check_size(image.width, image.height, max_pixels)
            before_pixels(image.width * image.height)
            image.load()
            return _opaque_rgb(_upright(image))
    except SidecarError:
        raise
    except Exception as error:  # on hostile bytes Pillow's decoders raise far more than OSError
        raise exhausted(error) or ImageUnreadable(_why_unreadable(data)) from error


def resize(rgb: Rgb, height: int, width: int, resample: str) -> Rgb:
    """Stretch [h, w, 3] RGB to [height, width, 3]; `resample` is the name of a Pillow filter."""
    if rgb.shape[:2] == (height, width):
        return rgb
    how = Image.Resampling[resample.upper()]
    return np.asarray(Image.fromarray(rgb).resize((width, height), how))


def to_pixel_values(rgb: Rgb, height: int, width: int, how: Normalisation) -> PixelValues:
    """Resize and normalise [h, w, 3] RGB into [1, 3, height, width]; the aspect is not kept."""
    return normalise(resize(rgb, height, width, how.resample), how)


def _upright(image: Image.Image) -> Image.Image:
    try:
        turn = _TURN.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # broken EXIF says nothing of the pixels; viewers ignore it too
        return image
    if turn is None:
        return image
    upright = image.transpose(turn)
    image.close()  # frees its pixels
    return upright


def _opaque_rgb(image: Image.Image) -> Rgb:
    rgb = np.empty((image.height, image.width, 3), np.uint8)
    rows = max(1, BAND // image.width)
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        for left in range(0, image.width, BAND):
            right = min(left + BAND, image.width)
            band = image.crop((left, top, right, bottom))
            rgb[top:bottom, left:right] = _opaque_band(band)
    return rgb


def _opaque_band(image: Image.Image) -> Rgb:
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion would clip it to white
        grey = (np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return np.asarray(Image.alpha_composite(white, rgba).convert("RGB"))
    return np.asarray(image.convert("RGB"))


def _why_unreadable(data: bytes | memoryview) -> str:
    if image_header.is_known(data):
        return "the image file is damaged or cut short. Open it in a viewer, and save it again."
    return "expected the bytes of a PNG, JPEG or WebP file; these are not. Convert the image first."
