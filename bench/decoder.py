"""What decoder processes cost: `python -m bench.decoder`.

Prints the time that a picture takes in a process and in this one, the time to start a process, and
the memory that one holds at rest. No model.
"""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from sidecar import images
from sidecar.decoder import PROCESSES, Decoders, Picture
from sidecar.job import ImageFile, Pixels

PAGE = Path(__file__).parents[1] / "examples" / "ecg.png"
SIDE = 896
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


if __name__ == "__main__":
    main()
