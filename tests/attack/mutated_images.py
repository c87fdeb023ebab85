"""Images that were valid until something happened to their structure, sent to decoder processes.

    python -m tests.attack.mutated_images [--count 20000] [--seed 0]

`count` of each format. None may be answered as a fault of ours, end a process, cost more time or
memory than a picture may, or leave memory behind.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import struct
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from sidecar.decoder import PROCESSES, Decoders, Picture
from sidecar.errors import SidecarError
from sidecar.job import ImageFile
from tests.attack.hostile_images import EOI, SIGNATURE, SOI, chunk, saved

MAX_PIXELS = 1_000_000
ALLOWED = {"ok", "image.unreadable", "image.too_large"}
WARM = 0.2  # of the mutants, before memory is looked at first
GROWTH = 8 * 2**20  # bytes of a process, for the heap's fragments

NUMBERS = (0, 1, 2, 7, 127, 128, 255, 256, 32767, 65500, 65535, 2**24, 2**31 - 1, 2**31, 2**32 - 1)
MARKERS = (*range(0xC0, 0xD0), *range(0xD8, 0xE3), 0xED, 0xEE, 0xFE, 0x01, 0xD0)
KINDS = {
    "PNG": b"IHDR PLTE tRNS IDAT IEND gAMA cHRM iCCP sRGB pHYs tEXt zTXt iTXt eXIf acTL fcTL fdAT",
    "WEBP": b"VP8X VP8\x20 VP8L ALPH ANIM ANMF ICCP EXIF XMP\x20",
}

Part = tuple[bytes, bytes]  # a chunk's kind or a segment's marker, and its content
Parts = list[Part]


def seeds(kind: str) -> list[bytes]:
    """Small files of every sort that a format has."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 4), np.uint8)
    rgba = Image.fromarray(noise)
    rgb, grey = rgba.convert("RGB"), rgba.convert("L")
    smooth = rgb.resize((5, 4)).resize((60, 40))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    more = {"save_all": True, "append_images": [smooth, rgb]}
    if kind == "PNG":
        deep = Image.fromarray(np.arange(2400, dtype=np.uint16).reshape(40, 60))
        palette = smooth.quantize(16)
        palette.info["transparency"] = 3
        pictures = [saved(image, kind) for image in (rgb, rgba, grey, deep, palette, smooth)]
        pictures += [saved(grey.convert(mode), kind) for mode in ("1", "LA")]
        return [*pictures, saved(rgb, kind, exif=exif), saved(smooth, kind, **more)]
    if kind == "JPEG":
        cmyk = saved(smooth.convert("CMYK"), kind)
        restarts = saved(rgb, kind, restart_marker_blocks=2)
        pictures = [saved(image, kind, quality=q) for image in (rgb, smooth) for q in (20, 95)]
        pictures += [saved(rgb, kind, progressive=True), saved(grey, kind, progressive=True)]
        pictures += [cmyk, restarts, saved(smooth, kind, exif=exif, comment=b"a comment")]
        return [*pictures, saved(smooth, "MPO", **more)]
    lossless = [saved(image, kind, lossless=True) for image in (rgb, rgba, smooth)]
    lossy = [saved(image, kind, quality=50) for image in (rgb, rgba, smooth)]
    return [*lossless, *lossy, saved(smooth, kind, exif=exif), saved(smooth, kind, **more)]


def mutants(kind: str, seed: int) -> Iterator[bytes]:
    """Without end; the same for the same `seed`."""
    chance = random.Random(f"{kind} {seed}")
    take, put = FORMATS[kind]
    originals = seeds(kind)
    while True:
        parts = take(chance.choice(originals))
        for _ in range(chance.randint(1, 3)):
            parts = _mutate(parts, chance, kind, take(chance.choice(originals)))
        data = put(parts, chance)
        if chance.random() < 0.1:
            data = _scratch(data, chance)
        yield data


def _take_png(data: bytes) -> Parts:
    parts, at = [], len(SIGNATURE)
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        parts.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += length + 12
    return parts


def _put_png(parts: Parts, chance: random.Random) -> bytes:
    """With the right lengths and checksums, as a rule."""
    whole = bytearray(SIGNATURE)
    for kind, content in parts:
        one = bytearray(chunk(kind, content))
        if chance.random() < 0.02:
            at = chance.choice([0, len(one) - 4])
            one[at : at + 4] = struct.pack(">I", chance.choice(NUMBERS))
        whole += one
    return bytes(whole)


def _take_jpeg(data: bytes) -> Parts:
    """A scan's content is that of its segment, and all up to the next marker."""
    parts, at = [], 0
    while at + 2 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1 : at + 2]
        if marker in (b"\xd8", b"\xd9"):
            parts.append((marker, b""))
            at += 2
            continue
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        while marker == b"\xda" and end + 1 < len(data) and not _ends_scan(data, end):
            end += 1
        parts.append((marker, data[at + 4 : end]))
        at = end
    return parts


def _ends_scan(data: bytes, at: int) -> bool:
    return data[at] == 0xFF and data[at + 1] not in (0x00, 0xFF, *range(0xD0, 0xD8))


def _put_jpeg(parts: Parts, chance: random.Random) -> bytes:
    whole = bytearray()
    for marker, content in parts:
        whole += b"\xff" * (1 + (chance.random() < 0.02) * chance.randrange(5)) + marker
        if marker in (b"\xd8", b"\xd9"):
            continue
        length = len(content) + 2
        if marker == b"\xda" and content:
            length = 3 + 2 * content[0] + 3
        if chance.random() < 0.02:
            length = chance.choice(NUMBERS)
        whole += (length & 0xFFFF).to_bytes(2, "big") + content
    return bytes(whole) or SOI + EOI


def _take_webp(data: bytes) -> Parts:
    parts, at = [], 12
    while at + 8 <= len(data):
        (length,) = struct.unpack_from("<I", data, at + 4)
        parts.append((data[at : at + 4], data[at + 8 : at + 8 + length]))
        at += 8 + length + length % 2
    return parts


def _put_webp(parts: Parts, chance: random.Random) -> bytes:
    whole = bytearray()
    for kind, content in parts:
        length = len(content) if chance.random() > 0.02 else chance.choice(NUMBERS)
        whole += kind + struct.pack("<I", length) + content + b"\x00" * (len(content) % 2)
    size = len(whole) + 4 if chance.random() > 0.02 else chance.choice(NUMBERS)
    return b"RIFF" + struct.pack("<I", size) + b"WEBP" + whole


FORMATS: dict[str, tuple[Callable[[bytes], Parts], Callable[[Parts, random.Random], bytes]]] = {
    "PNG": (_take_png, _put_png),
    "JPEG": (_take_jpeg, _put_jpeg),
    "WEBP": (_take_webp, _put_webp),
}


def _mutate(parts: Parts, chance: random.Random, format: str, others: Parts) -> Parts:
    """One change to the structure, or to what one part holds."""
    at = chance.randrange(len(parts)) if parts else 0
    kind, content = parts[at] if parts else (b"\xd8", b"")
    match chance.randrange(10):
        case 0:
            return [*parts[:at], *parts[at + 1 :]]
        case 1:
            return [*parts[:at], *[(kind, content)] * chance.choice([2, 3, 50]), *parts[at + 1 :]]
        case 2:
            parts = list(parts)
            chance.shuffle(parts)
            return parts
        case 3 if others:
            return [*parts[:at], chance.choice(others), *parts[at:]]
        case 4:
            if format == "JPEG":
                kind = bytes([chance.choice(MARKERS)])
            else:
                kind = chance.choice([k.ljust(4) for k in KINDS[format].split()])
        case 5:
            content = content[: chance.randrange(len(content) + 1)]
        case 6:
            content += bytes(chance.choice([1, 4, 100, 5000]))
        case 7 if kind == b"IDAT":
            content = _repack(content, chance)
        case _:
            content = _scratch(content, chance)
    return [*parts[:at], (kind, content), *parts[at + 1 :]]


def _repack(content: bytes, chance: random.Random) -> bytes:
    """Change what a PNG's pixels unpack to: filters, lengths, levels."""
    try:
        rows = zlib.decompress(content)
    except zlib.error:
        return content
    return zlib.compress(_scratch(rows, chance), chance.choice([0, 1, 9]))


def _scratch(data: bytes, chance: random.Random) -> bytes:
    """Bits, bytes or a number somewhere."""
    if not data:
        return data
    changed = bytearray(data)
    for _ in range(chance.choice([1, 1, 2, 8])):
        if not changed:  # the last change took all
            break
        at = chance.randrange(len(changed))
        match chance.randrange(4):
            case 0:
                changed[at] ^= 1 << chance.randrange(8)
            case 1:
                changed[at] = chance.choice([0, 1, 127, 128, 254, 255])
            case 2:
                size, order = chance.choice([2, 4]), chance.choice(["<", ">"])
                number = chance.choice(NUMBERS) & (256**size - 1)
                changed[at : at + size] = struct.pack(f"{order}{'H' if size == 2 else 'I'}", number)
            case 3:
                changed[at : at + chance.randrange(9)] = chance.randbytes(chance.randrange(9))
    return bytes(changed)


def run(kind: str, seed: int, count: int, decoders: Decoders) -> Counter[str]:
    """How many of them were answered by which code. Raises AssertionError where one is wrong."""
    files = islice(mutants(kind, seed), count)
    restarts = decoders.report()["restarts"]
    with ThreadPoolExecutor(PROCESSES) as threads:
        first = Counter(_codes(islice(files, int(count * WARM)), decoders, threads))
        before = memory(decoders)
        codes = first + Counter(_codes(files, decoders, threads))
    assert decoders.report()["restarts"] == restarts, "a decoder process ended"
    for was, held in zip(before, memory(decoders), strict=True):
        assert held <= was + GROWTH, f"{held - was} bytes were left behind"
    return codes


def _codes(
    files: Iterator[bytes], decoders: Decoders, threads: ThreadPoolExecutor
) -> Iterator[str]:
    """A few at a time: a thread pool would make all of the files at once."""
    while some := list(islice(files, 64)):
        yield from threads.map(lambda data: _code(data, decoders), some)


def _code(data: bytes, decoders: Decoders) -> str:
    with Picture(decoders, MAX_PIXELS) as picture:
        try:
            picture.prepare(ImageFile(data), (28, 42), "bilinear", keep=False)
        except SidecarError as error:
            code = error.code
        else:
            code = "ok"
    assert code in ALLOWED, (code, data.hex())
    return code


def memory(decoders: Decoders) -> list[int]:
    """Resident bytes of each process, the least first; nothing where the system tells none."""
    held = []
    for pid in decoders.pids():
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/status").read_text("ascii").splitlines():
                if line.startswith("VmRSS:"):
                    held.append(int(line.split()[1]) * 1024)
    return sorted(held)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    with contextlib.closing(Decoders()) as decoders:
        for kind in FORMATS:
            begun = time.monotonic()
            codes = run(kind, chosen.seed, chosen.count, decoders)
            seconds = time.monotonic() - begun
            counts = ", ".join(f"{number} {code}" for code, number in codes.most_common())
            megabytes = ", ".join(f"{held / 2**20:.1f}" for held in memory(decoders))
            print(
                f"{chosen.count} mutants of {kind} in {seconds:.0f} s: {counts}; "
                f"the processes hold {megabytes} MiB",
                flush=True,
            )


if __name__ == "__main__":
    main()
