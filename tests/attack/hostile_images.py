"""Files that cost a decoder as much as their bytes and pixels allow. No sidecar, no measuring.

Each maker takes a `scale`: 1 is as large as the default limits let it be (64 megapixels, or 64 MiB
where the file itself is what costs), 0.1 a tenth of that.
"""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable
from functools import partial

import numpy as np
from PIL import Image, ImageFile

MAX_PIXELS = 64_000_000
MEBIBYTE = 2**20
FILE_BYTES = 64 * MEBIBYTE

ImageFile.MAXBLOCK = 2**28  # Pillow's encoders of noise need more room than it gives them

Maker = Callable[[float], bytes]

SIGNATURE = b"\x89PNG\r\n\x1a\n"
SOI, EOI, SOS = b"\xff\xd8", b"\xff\xd9", b"\xff\xda"


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    """One of a PNG, with the right checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def segment(marker: int, data: bytes = b"") -> bytes:
    """One of a JPEG."""
    return bytes((0xFF, marker)) + struct.pack(">H", len(data) + 2) + data


def noise(width: int, height: int, channels: int = 3) -> Image.Image:
    """Nothing that compresses, from one small tile."""
    tile = np.random.default_rng(0).integers(0, 256, (64, 64, channels), np.uint8)
    pixels = np.tile(tile, (-(-height // 64), -(-width // 64), 1))[:height, :width]
    return Image.fromarray(pixels.squeeze())


def sides(scale: float, limit: int = 2**31) -> tuple[int, int]:
    """Width and height of about `scale` times the allowed pixels, no side above `limit`."""
    pixels = int(MAX_PIXELS * scale)
    width = min(max(1, int(pixels**0.5)), limit)
    return width, min(pixels // width, limit)


def png(
    scale: float,
    depth: int = 8,
    colour: int = 2,
    interlaced: bool = False,
    width: int = 0,
    filter: int = 0,
) -> bytes:
    """Zeros; `width` 0 makes it square. `filter` is that of each row."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    pixels = int(MAX_PIXELS * scale)
    width = width or max(1, int(pixels**0.5))
    height = max(1, pixels // width)
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    packer = zlib.compressobj(1)
    passes = _passes(width, height) if interlaced else [(width, height)]
    rows = []
    for across, down in passes:
        row = bytes([filter]) + bytes(-(-across * channels * depth // 8))
        rows += [packer.compress(row * min(1000, down - at)) for at in range(0, down, 1000)]
    data = b"".join(rows) + packer.flush()
    palette = chunk(b"PLTE", bytes(768)) + chunk(b"tRNS", bytes(256)) if colour == 3 else b""
    return SIGNATURE + chunk(b"IHDR", header) + palette + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def _passes(width: int, height: int) -> list[tuple[int, int]]:
    """The sizes of Adam7's seven passes, without the empty ones."""
    starts = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2)]
    grids = [*starts, (0, 1, 1, 2)]
    sizes = [(-(-(width - x) // dx), -(-(height - y) // dy)) for x, y, dx, dy in grids]
    return [(across, down) for across, down in sizes if across > 0 and down > 0]


def png_chunks(scale: float, kind: bytes = b"prVt", data: bytes = b"") -> bytes:
    """A tiny picture behind as many small chunks as fit."""
    small = saved(Image.new("RGB", (9, 9)), "PNG")
    one = chunk(kind, data)
    return small[:33] + one * int(FILE_BYTES * scale / len(one)) + small[33:]


def png_empty_blocks(scale: float) -> bytes:
    """Deflate blocks that hold nothing, before the pixels."""
    small = Image.new("RGB", (9, 9))
    empty = b"\x00\x00\x00\xff\xff" * int(FILE_BYTES * scale / 5)
    packer = zlib.compressobj(1, wbits=-15)
    rows = bytes(9 * (1 + 27))
    data = b"\x78\x01" + empty + packer.compress(rows) + packer.flush()
    data += struct.pack(">I", zlib.adler32(rows))
    whole = saved(small, "PNG")
    return whole[:33] + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def jpeg_fill(scale: float) -> bytes:
    """Fill bytes between two markers."""
    small = saved(Image.new("RGB", (9, 9)), "JPEG")
    return small[:2] + b"\xff" * int(FILE_BYTES * scale) + small[2:]


def jpeg_segments(scale: float, marker: int = 0xE5, count: int = 2**31, size: int = 0) -> bytes:
    """Segments of `size` bytes, as many as fit, but no more than `count`."""
    small = saved(Image.new("RGB", (9, 9)), "JPEG")
    one = segment(marker, bytes(size))
    return small[:2] + one * min(count, int(FILE_BYTES * scale / len(one))) + small[2:]


def jpeg_scans(scale: float, scans: int = 100, subsampling: int = 0) -> bytes:
    """A progressive picture whose last scan is repeated."""
    width, height = sides(scale, 65_500)
    image = Image.new("L" if subsampling < 0 else "RGB", (width, height))
    options = {"subsampling": subsampling} if subsampling >= 0 else {}
    data = saved(image, "JPEG", progressive=True, quality=50, **options)
    last = data.rindex(SOS)
    return data[:-2] + data[last:-2] * (scans - data.count(SOS)) + EOI


def jpeg_noise(scale: float, progressive: bool = True, quality: int = 100) -> bytes:
    """As many coefficients as a picture has."""
    image = noise(*sides(scale, 65_500))
    return saved(image, "JPEG", progressive=progressive, quality=quality, subsampling=0)


def jpeg_restarts(scale: float) -> bytes:
    """A restart marker after each block."""
    image = Image.new("RGB", sides(scale, 65_500))
    return saved(image, "JPEG", quality=50, restart_marker_blocks=1)


def jpeg_thin(scale: float) -> bytes:
    """The longest columns: strips of pixels that a block hardly covers."""
    return saved(Image.new("RGB", (max(1, int(976 * scale)), 65_500)), "JPEG", quality=50)


def webp(scale: float, lossless: bool = False, alpha: bool = False, flat: bool = True) -> bytes:
    width, height = sides(scale, 16_383)
    channels = 4 if alpha else 3
    image = Image.new("RGBA" if alpha else "RGB", (width, height), (9, 99, 199, 99)[:channels])
    if not flat:
        image = noise(width, height, channels)
    return saved(image, "WEBP", lossless=lossless, quality=10, method=0)


def webp_chunks(scale: float) -> bytes:
    """A tiny picture behind as many unknown chunks as fit."""
    small = saved(Image.new("RGB", (9, 9)), "WEBP", lossless=True, exif=b"Exif\x00\x00")
    body = small[12:30] + b"prVt\x00\x00\x00\x00" * int(FILE_BYTES * scale / 8) + small[30:]
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def webp_frames(scale: float) -> bytes:
    """An animation: the first frame is decoded, all are looked at."""
    frame = Image.new("RGB", sides(scale / 16, 16_383))
    more = [Image.new("RGB", frame.size, (n, 0, 0)) for n in range(1, 16)]
    return saved(frame, "WEBP", save_all=True, append_images=more, lossless=True, method=0)


def png_frames(scale: float) -> bytes:
    frame = Image.new("RGB", sides(scale / 16))
    more = [Image.new("RGB", frame.size, (n, 0, 0)) for n in range(1, 16)]
    return saved(frame, "PNG", save_all=True, append_images=more, compress_level=1)


def turned(scale: float, orientation: int = 5) -> bytes:
    """To be transposed after decoding."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(Image.new("RGB", sides(scale)), "PNG", exif=exif, compress_level=1)


MAKERS: dict[str, Maker] = {
    "JPEG, fill bytes": jpeg_fill,
    "JPEG, empty APP5 segments": jpeg_segments,
    "JPEG, empty comments": partial(jpeg_segments, marker=0xFE),
    "JPEG, 2000 APP1 segments of 32 KiB": partial(
        jpeg_segments, marker=0xE1, count=1980, size=32_000
    ),
    "JPEG, 100 scans": jpeg_scans,
    "JPEG, 100 scans of grey": partial(jpeg_scans, subsampling=-1),
    "JPEG, 100 scans, 4:2:0": partial(jpeg_scans, subsampling=2),
    "JPEG, progressive noise": jpeg_noise,
    "JPEG, noise": partial(jpeg_noise, progressive=False),
    "JPEG, a restart marker a block": jpeg_restarts,
    "JPEG, 65,500 rows": jpeg_thin,
    "PNG, empty private chunks": png_chunks,
    "PNG, empty IDAT chunks": partial(png_chunks, kind=b"IDAT"),
    "PNG, short texts": partial(png_chunks, kind=b"tEXt", data=b"a\0b"),
    "PNG, packed texts": partial(png_chunks, kind=b"zTXt", data=b"a\0\0" + zlib.compress(b"b")),
    "PNG, iTXt": partial(png_chunks, kind=b"iTXt", data=b"a\0\0\0\0\0b"),
    "PNG, EXIF chunks": partial(png_chunks, kind=b"eXIf", data=b"MM\x00*\x00\x00\x00\x08\x00\x00"),
    "PNG, empty deflate blocks": png_empty_blocks,
    "PNG, one column": partial(png, width=1),
    "PNG, one column of 1 bit": partial(png, depth=1, colour=0, width=1),
    "PNG, one column, interlaced": partial(png, width=1, interlaced=True),
    "PNG, two columns, Paeth": partial(png, width=2, filter=4),
    "PNG, one row": lambda scale: png(scale, width=int(MAX_PIXELS * scale)),
    "PNG, RGB": png,
    "PNG, RGB, Paeth": partial(png, filter=4),
    "PNG, RGBA of 16 bits": partial(png, depth=16, colour=6),
    "PNG, RGBA of 16 bits, Paeth": partial(png, depth=16, colour=6, filter=4),
    "PNG, RGBA of 16 bits, interlaced": partial(png, depth=16, colour=6, interlaced=True),
    "PNG, grey of 16 bits": partial(png, depth=16, colour=0),
    "PNG, grey with alpha": partial(png, colour=4),
    "PNG, palette with alpha": partial(png, colour=3),
    "PNG, black and white, interlaced": partial(png, depth=1, colour=0, interlaced=True),
    "PNG, transposed": turned,
    "PNG, transverse": partial(turned, orientation=7),
    "PNG, 16 frames": png_frames,
    "WebP, lossy": webp,
    "WebP, lossy noise": partial(webp, flat=False),
    "WebP, lossy with alpha": partial(webp, alpha=True, flat=False),
    "WebP, lossless": partial(webp, lossless=True),
    "WebP, lossless noise": partial(webp, lossless=True, flat=False),
    "WebP, lossless with alpha": partial(webp, lossless=True, alpha=True),
    "WebP, unknown chunks": webp_chunks,
    "WebP, 16 frames": webp_frames,
}


def variations(count: int, seed: int = 0) -> dict[str, Maker]:
    """More of them, with parameters drawn by chance: the same for the same `seed`."""
    chance = random.Random(seed)
    found: dict[str, Maker] = {}
    while len(found) < count:
        name, maker = _variation(chance)
        found[name] = maker
    return found


def _variation(chance: random.Random) -> tuple[str, Maker]:
    match chance.randrange(5):
        case 0:
            depth, colour = chance.choice(
                [(1, 0), (2, 0), (4, 3), (8, 3), (16, 0), (8, 4), (16, 6)]
            )
            width = chance.choice([1, 2, 3, 7, 64, 1000, 65_536, 1_000_000])
            interlaced, filter = chance.random() < 0.5, chance.randrange(5)
            name = f"PNG, {depth} bits, colour {colour}, {width} wide, filter {filter}"
            if interlaced:
                name += ", interlaced"
            return name, partial(
                png, depth=depth, colour=colour, interlaced=interlaced, width=width, filter=filter
            )
        case 1:
            kind = bytes(chance.choices(b"abcdefgh", k=2)) + b"Zz"
            kind = chance.choice([kind, b"IDAT", b"tEXt", b"gAMA", b"pHYs", b"sRGB", b"acTL"])
            data = bytes(chance.choice([0, 1, 4, 9, 100]))
            return f"PNG, {kind.decode()} of {len(data)}", partial(png_chunks, kind=kind, data=data)
        case 2:
            scans, subsampling = chance.randint(20, 100), chance.choice([-1, 0, 1, 2])
            return f"JPEG, {scans} scans, subsampling {subsampling}", partial(
                jpeg_scans, scans=scans, subsampling=subsampling
            )
        case 3:
            marker = chance.choice([0xC4, 0xDB, 0xDD, *range(0xE0, 0xF0), 0xFE])
            size, count = chance.choice([0, 1, 16, 1000, 60_000]), chance.choice([1990, 2**31])
            return f"JPEG, {count} segments {marker:X} of {size}", partial(
                jpeg_segments, marker=marker, count=count, size=size
            )
    lossless, alpha, flat = (chance.random() < 0.5 for _ in range(3))
    return f"WebP, lossless {lossless}, alpha {alpha}, flat {flat}", partial(
        webp, lossless=lossless, alpha=alpha, flat=flat
    )
