"""Searches for the files that cost the decoder most, and measures what they cost the next request.

    python -m tests.attack.slowest [--files 20] [--search 60] [--rounds 3]

Every maker of `hostile_images`, and `--search` variations drawn by chance, are ranked by the
processor time of a thirtieth of their size. The `--files` slowest are then sent, in full size, to a
real sidecar: once alone, to their own answer; then, `--rounds` times, cancelled once they are being
decoded, with a small image behind them. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image, features

from sidecar import images
from sidecar.errors import SidecarError
from tests import stand_in
from tests.attack import hostile_images
from tests.attack.hostile_images import MAX_PIXELS, Maker, saved
from tests.attack.processes import descendants, processor_seconds
from tests.client import ZmqClient

SAMPLE = 1 / 30
BUSY_S = 0.2  # of processor time: the decoder has begun
SMALL = saved(Image.new("RGB", (9, 9), "red"), "PNG")
AT_224: dict[str, Any] = {"resolution": 224}
DRAWN = {**AT_224, "outputs": ["heatmap_png"]}
ALLOWED = {"ok", "image.unreadable", "image.too_large", "image.too_costly", "request.cancelled"}


def cost(maker: Maker) -> float:
    """Seconds of processor time of a sample, decoded in this process."""
    data = maker(SAMPLE)
    begun = time.process_time()
    with contextlib.suppress(SidecarError):
        images.decode(data, MAX_PIXELS)
    return time.process_time() - begun


def slowest(count: int, search: int) -> dict[str, Maker]:
    """The most expensive first."""
    makers = hostile_images.MAKERS | hostile_images.variations(search)
    costs = {name: cost(maker) for name, maker in makers.items()}
    names = sorted(costs, key=lambda name: -costs[name])[:count]
    return {name: makers[name] for name in names}


def alone(sidecar: ZmqClient, data: bytes, params: dict[str, Any]) -> tuple[float, str, float]:
    """Seconds to its own answer, the answer's code, and the decoders' peak of memory in MB."""
    begun = time.monotonic()
    code = sidecar.reply(sidecar.submit("encode", {"image": data}, params), seconds=300).code
    seconds = time.monotonic() - begun
    assert code in ALLOWED, code
    return seconds, code, peak_memory(sidecar) / 1e6


def after_cancel(
    sidecar: ZmqClient, data: bytes, params: dict[str, Any], busy: float
) -> float | None:
    """Seconds from the cancel to the answer of the image behind; None where it came too late.

    The cancel comes once the decoder has spent `busy` seconds of processor time.
    """
    settle(sidecar)
    before = spent(sidecar)
    slow = sidecar.submit("encode", {"image": data}, params)
    while not any(now > before.get(pid, now) + busy for pid, now in spent(sidecar).items()):
        if sidecar.ask("stats").header["queue"]["requests"] == 0:
            sidecar.reply(slow)
            return None
    begun = time.monotonic()
    cancel = sidecar.submit("cancel", params={"target": slow})
    behind = sidecar.submit("encode", {"image": SMALL}, AT_224)
    assert sidecar.reply(behind).ok
    seconds = time.monotonic() - begun
    cancelled = sidecar.reply(cancel).header["cancelled"]
    assert sidecar.reply(slow).code in ALLOWED
    return seconds if cancelled else None


def settle(sidecar: ZmqClient) -> None:
    """Wait until both decoder processes are there and have nothing to do."""
    while sidecar.ask("stats").header["decoders"]["processes"] < 2:
        time.sleep(0.01)
    for _ in range(2):  # each has started, once it has answered
        assert sidecar.ask("encode", {"image": SMALL}, DRAWN).ok
    before: dict[int, float] = {}
    while (now := spent(sidecar)) != before:
        before = now
        time.sleep(0.1)


def spent(sidecar: ZmqClient) -> dict[int, float]:
    return {pid: processor_seconds(pid) for pid in descendants(sidecar.process.pid)}


def peak_memory(sidecar: ZmqClient) -> int:
    """The larger peak of the decoder processes, in bytes."""
    peaks = []
    for pid in descendants(sidecar.process.pid):
        status = Path(f"/proc/{pid}/status").read_text("ascii")
        [line] = [line for line in status.splitlines() if line.startswith("VmHWM:")]
        peaks.append(int(line.split()[1]) * 1024)
    return max(peaks)


def row(
    name: str,
    data: bytes,
    model: Path,
    rounds: int,
    params: dict[str, Any] = AT_224,
    share: float = 0,
    whole: bool = True,
) -> list[float]:
    """Print one file's line; the seconds after each cancel. `whole`: wait for its own answer too.

    The cancel comes after a `share` of the processor time that the answer took.
    """
    with (
        Path(os.devnull).open("wb") as nowhere,
        ZmqClient(model, "--priority", "normal", stderr=nowhere) as sidecar,
    ):
        settle(sidecar)
        answer, busy = " | | ", BUSY_S
        if whole or share:
            before = sum(spent(sidecar).values())
            seconds, code, megabytes = alone(sidecar, data, params)
            busy = max(BUSY_S, share * (sum(spent(sidecar).values()) - before))
            answer = f"{seconds:.1f} | {code} | {megabytes:.0f}"
        waits = [after_cancel(sidecar, data, params, busy) for _ in range(rounds)]
    measured = [wait for wait in waits if wait is not None]
    longest = f"{max(measured) * 1e3:.0f}" if measured else "-"
    print(f"| {name} | {len(data) / 2**20:.2f} | {answer} | {longest} |", flush=True)
    return measured


def control(model: Path, rounds: int) -> float:
    """The longest that the small image takes with nothing before it: the machine's own noise."""
    with (
        Path(os.devnull).open("wb") as nowhere,
        ZmqClient(model, "--priority", "normal", stderr=nowhere) as sidecar,
    ):
        settle(sidecar)
        waits = []
        for _ in range(rounds):
            begun = time.monotonic()
            sidecar.submit("cancel", params={"target": 0})
            assert sidecar.ask("encode", {"image": SMALL}, AT_224).ok
            waits.append(time.monotonic() - begun)
            time.sleep(0.3)
    return max(waits)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--files", type=int, default=20)
    parser.add_argument("--search", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--alone", action=argparse.BooleanOptionalAction, default=True, help="its own answer too"
    )
    chosen = parser.parse_args()
    print(
        f"{os.cpu_count()} cores ({platform.machine()}), load {os.getloadavg()[0]:.1f}, Python "
        f"{platform.python_version()}, Pillow {features.version('pil')}, libjpeg-turbo "
        f"{features.version('libjpeg_turbo')}, libwebp {features.version('webp')}, zlib "
        f"{features.version('zlib')}\n"
    )
    print("| file | MiB | alone, s | its answer | peak MB | after a cancel, ms |")
    print("| --- | ---: | ---: | --- | ---: | ---: |")
    waits: list[float] = []
    with tempfile.TemporaryDirectory() as directory:
        model = stand_in.make(Path(directory) / "model")
        noise_ms = control(model, chosen.files * chosen.rounds) * 1e3
        print(f"| (none before it) | - | - | - | - | {noise_ms:.0f} |", flush=True)
        for name, maker in slowest(chosen.files, chosen.search).items():
            waits += row(name, maker(1), model, chosen.rounds, whole=chosen.alone)
        noise = saved(hostile_images.noise(8000, 8000), "PNG", compress_level=1)
        # Cancelled when four fifths are done: in the drawing.
        waits += row("PNG, noise, while drawn", noise, model, chosen.rounds, DRAWN, share=0.8)
    print(f"\nAfter a cancel the next image was answered within {max(waits) * 1e3:.0f} ms.")


if __name__ == "__main__":
    main()
