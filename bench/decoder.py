"""What decoder processes cost: `python -m bench.decoder`.

Prints the time that a picture takes in a process and in this one, the time to start the processes,
the memory that they hold at rest, and what pictures of each format take at most. No model.
"""

import contextlib
import io
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from sidecar import images
from sidecar.decoder import PROCESSES, Decoders, Picture
from sidecar.job import HeatmapOptions, ImageFile, Pixels

PAGE = Path(__file__).parents[1] / "examples" / "ecg.png"
SIDE = 896
LARGE = 4000
MAX_PIXELS = 64_000_000
ROUNDS = 51


def milliseconds(one: Callable[[], object], other: Callable[[], object]) -> tuple[float, float]:
    """The least of some rounds of each, in turn: what other processes do only adds."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        for work, taken in zip((one, other), times, strict=True):
            begun = time.perf_counter()
            work()
            taken.append((time.perf_counter() - begun) * 1e3)
    return min(times[0]), min(times[1])


def memory(pid: int) -> dict[str, float]:
    """MB by name, from Linux's smaps_rollup; Pss shares out what processes have in common."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text("ascii").splitlines()[1:]
    return {line.split(":")[0]: int(line.split()[1]) * 1024 / 1e6 for line in lines}


def large() -> Iterator[tuple[str, bytes]]:
    """Files of the kinds that take most memory, with noise in LARGE x LARGE pixels."""
    noise = Image.effect_noise((500, 500), 60).resize((LARGE, LARGE))
    rgb = Image.merge("RGB", (noise, noise.transpose(Image.Transpose.FLIP_LEFT_RIGHT), noise))
    yield "PNG", saved(rgb, "PNG", compress_level=1)
    yield "PNG with alpha", saved(rgb.convert("RGBA"), "PNG", compress_level=1)
    yield "JPEG", saved(rgb, "JPEG")
    yield "JPEG, CMYK, progressive", saved(rgb.convert("CMYK"), "JPEG", progressive=True)
    rgb.putalpha(noise)
    yield "WebP with alpha", saved(rgb, "WEBP", method=0)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def costs(decoders: Decoders, data: bytes) -> tuple[float, float, float]:
    """Seconds of processor time to decode and to draw, and the bytes a pixel took at most."""
    picture = Picture(decoders, MAX_PIXELS)
    pids = set(decoders.pids())
    before = {pid: spent(pid) for pid in pids}
    rest = {pid: resident(pid, "VmRSS") for pid in pids}
    picture.prepare(ImageFile(data), (SIDE, SIDE), "bilinear", keep=True)
    [pid] = [pid for pid in pids if spent(pid) > before[pid] + 0.05]
    decoded = spent(pid)
    scores = np.linspace(0, 1, 256, dtype=np.float32)
    picture.draw(scores, (SIDE, SIDE), HeatmapOptions(), (1.0, 2.0), flat=False)
    drawn = spent(pid)
    peak = resident(pid, "VmHWM") - rest[pid]
    return decoded - before[pid], drawn - decoded, peak / LARGE**2


def resident(pid: int, name: str) -> int:
    """Bytes, now (VmRSS) or at most (VmHWM)."""
    lines = Path(f"/proc/{pid}/status").read_text("ascii").splitlines()
    [line] = [line for line in lines if line.startswith(f"{name}:")]
    return int(line.split()[1]) * 1024


def spent(pid: int) -> float:
    """Seconds of processor time."""
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def parent(pid: int) -> int:
    """The template that `pid` was forked from."""
    return int(Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()[1])


def started() -> tuple[Decoders, float]:
    """The processes, once each has answered, and the seconds that took."""
    begun = time.perf_counter()
    decoders = Decoders()
    pixel = np.zeros((1, 1, 3), np.uint8)
    pictures = [Picture(decoders, MAX_PIXELS) for _ in range(PROCESSES)]
    for picture in pictures:
        picture.prepare(Pixels(pixel), (1, 1), "bilinear", keep=True)
    for picture in pictures:
        picture.close()
    return decoders, time.perf_counter() - begun


def main() -> None:
    """Print all as Markdown."""
    decoders, seconds = started()
    resting = [memory(pid) for pid in {*decoders.pids(), *map(parent, decoders.pids())}]
    page = PAGE.read_bytes()
    photo = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    sources: dict[str, ImageFile | Pixels] = {
        f"RGB, {SIDE} x {SIDE}": Pixels(photo),
        "PNG, the example page": ImageFile(page),
    }
    print(f"| picture to {SIDE} x {SIDE} | in a process, ms | without, ms | more, ms |")
    print("| --- | ---: | ---: | ---: |")
    for name, source in sources.items():

        def apart(source: ImageFile | Pixels = source) -> None:
            with Picture(decoders, MAX_PIXELS) as picture:
                picture.prepare(source, (SIDE, SIDE), "bilinear", keep=False)

        def here(source: ImageFile | Pixels = source) -> None:
            rgb = source.rgb if isinstance(source, Pixels) else images.decode(source.data, 10**9)
            images.resize(rgb, SIDE, SIDE, "bilinear")

        one, other = milliseconds(apart, here)
        print(f"| {name} | {one:.1f} | {other:.1f} | {one - other:.1f} |")
    size = Image.open(PAGE).size
    print(f"\nThe example page has {size[0]} x {size[1]} pixels; the best of {ROUNDS} rounds.")
    names = ("Rss", "Pss", "Private_Dirty")
    sums = ", ".join(f"{name} {sum(one[name] for one in resting):.1f}" for name in names)
    print(f"The first {PROCESSES} processes are ready after {seconds:.2f} s.")
    print(f"At rest they and their template hold, in MB: {sums}.")
    decoders.close()
    print(f"\n| {LARGE} x {LARGE} | decode, CPU s | draw, CPU s | peak, bytes a pixel |")
    print("| --- | ---: | ---: | ---: |")
    for name, data in large():
        with contextlib.closing(Decoders()) as fresh:
            fresh.wait_until_ready()
            decoding, drawing, peak = costs(fresh, data)
        print(f"| {name} | {decoding:.2f} | {drawing:.2f} | {peak:.1f} |")


if __name__ == "__main__":
    main()
