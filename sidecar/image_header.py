"""The size of a picture and the scans of a JPEG, read from the file's structure: no decoding.

The sidecar itself reads no more of a file than this; whatever parses or decodes more runs in the
decoder process. All lengths come from a stranger: each loop is bounded, each read is checked.
"""

import re
from collections.abc import Iterator

from sidecar.errors import ImageTooLarge, ImageUnreadable

Data = bytes | bytearray | memoryview

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
JPEG_SIGNATURE = b"\xff\xd8\xff"

MAX_SCANS = (
    100  # of a JPEG; each costs a pass over the picture, and a progressive one has about ten
)
# Segments of at most 64 KiB before the frame header: real files hold colour profiles, EXIF, XMP and
# depth maps there, some hundred at most.
MAX_SEGMENTS = 2000
HEADER_GAP = 1024  # bytes of fill or garbage between two segments that `size` looks past

_SOI, _EOI, _SOS = 0xD8, 0xD9, 0xDA
_STANDALONE = {0x01, _SOI}  # no length follows; restart markers (D0 to D7) are part of a scan
_NOT_FRAMES = {0xC4, 0xC8, 0xCC}  # DHT, JPG and DAC lie between the SOFs

# The next marker: FF, then neither a stuffed zero, nor a restart marker, nor a fill byte.
_MARKER = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])")


def size(data: Data) -> tuple[int, int] | None:
    """(width, height) in pixels as the file's header says, or None where it says none that we find.

    For a bound on memory, not for decoding: a damaged file may hold another size further on.
    """
    if data[:8] == PNG_SIGNATURE:
        return _png_size(data)
    if data[:3] == JPEG_SIGNATURE:
        return _jpeg_size(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _webp_size(data)
    return None


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Raises ImageUnreadable, ImageTooLarge, before anything is decoded or copied."""
    if width < 1 or height < 1:
        raise ImageUnreadable(f"the image is {width} x {height} pixels; it has none.")
    if width * height > max_pixels:
        raise ImageTooLarge(
            f"the image has {width} x {height} pixels, more than the {max_pixels} allowed. "
            "Scale it down first."
        )


def is_known(data: Data) -> bool:
    """True if the first bytes are those of a PNG, JPEG or WebP file."""
    return (
        data[:8] == PNG_SIGNATURE
        or data[:3] == JPEG_SIGNATURE
        or (data[:4] == b"RIFF" and data[8:12] == b"WEBP")
    )


def jpeg_excess(data: Data) -> str | None:
    """Which structure of a JPEG there is too much of, "scans" or "segments", or None.

    Only the first picture counts, up to its end of image: behind it a phone may append a video, or
    further pictures.
    """
    scans = segments = 0
    if data[:3] == JPEG_SIGNATURE:
        for marker, _, _ in _segments(data, len(data)):
            segments += 1
            scans += marker == _SOS
            if scans > MAX_SCANS:
                return "scans"
            if segments > MAX_SEGMENTS:
                return "segments"
    return None


def _png_size(data: Data) -> tuple[int, int] | None:
    if len(data) < 24 or data[12:16] != b"IHDR":
        return None
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


def _webp_size(data: Data) -> tuple[int, int] | None:
    """RFC 9649: the lossy, the lossless and the extended header."""
    if len(data) < 30:
        return None
    kind = bytes(data[12:16])
    if kind == b"VP8X":
        return _little(data, 24, 3) + 1, _little(data, 27, 3) + 1
    if kind == b"VP8L" and data[20] == 0x2F:
        bits = _little(data, 21, 4)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        return _little(data, 26, 2) & 0x3FFF, _little(data, 28, 2) & 0x3FFF
    return None


def _jpeg_size(data: Data) -> tuple[int, int] | None:
    for number, (marker, start, end) in enumerate(_segments(data, HEADER_GAP)):
        if marker == _SOS or number == MAX_SEGMENTS:
            return None
        if 0xC0 <= marker <= 0xCF and marker not in _NOT_FRAMES:
            if end - start < 5:
                return None
            height = int.from_bytes(data[start + 1 : start + 3], "big")
            return int.from_bytes(data[start + 3 : start + 5], "big"), height
    return None


def _segments(data: Data, gap: int) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of each segment's content, up to the end of image or of what is whole.

    What lies between two segments is skipped, up to `gap` bytes: a scan's pixels, fill bytes, or
    garbage.
    """
    at = 2  # past the first SOI
    while (found := _MARKER.search(data, at, at + gap)) is not None:
        marker, at = found[1][0], found.end()
        if marker == _EOI:
            return
        if marker in _STANDALONE:
            yield marker, at, at
            continue
        length = int.from_bytes(data[at : at + 2], "big")
        if length < 2 or at + length > len(data):
            return
        yield marker, at + 2, at + length
        at += length


def _little(data: Data, at: int, length: int) -> int:
    return int.from_bytes(data[at : at + length], "little")
