"""A long life, and many deaths: memory and descriptors of one sidecar over thousands of requests of
mixed kinds, then parents killed in every state.

    python -m tests.soak [--requests 20000] [--kills 200]
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np

from tests import stand_in
from tests.client import ROOT, Client, ZmqClient

TENTHS = 10  # memory is looked at after each
GROWTH = 1.05  # of the median, from the first half to the second
DEATH_S = 1.0
STATES = ("starting", "loading", "idle", "busy")


def requests(sidecar: Client, count: int) -> None:
    """Raises AssertionError where memory grew or a descriptor was left open."""
    chance = random.Random(0)
    page = (ROOT / "examples" / "ecg.png").read_bytes()
    rgb = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    tensor = np.zeros((2, 3, 224, 224), np.float32)
    heatmap = {"resolution": 224, "outputs": ["heatmap_png"]}
    kinds = [
        lambda: sidecar.ask("encode", {"rgb": rgb}, {"resolution": 224}).ok,
        lambda: sidecar.ask("encode", {"rgb": rgb}, heatmap).ok,
        lambda: sidecar.ask("encode", {"pixel_values": tensor}).ok,
        lambda: sidecar.ask("encode", {"image": b"no image"}).code == "image.unreadable",
        lambda: sidecar.ask("encode", {"pixel_values": tensor[0]}).code == "tensor.shape",
        lambda: sidecar.ask("nothing").code == "request.unsupported",
        lambda: sidecar.ask("hello").ok,
        lambda: sidecar.ask("stats").ok,
        lambda: _cancelled(sidecar, rgb),
    ]
    resident: list[int] = []
    descriptors: list[int] = []
    begun = time.monotonic()
    for tenth in range(TENTHS):
        for number in range(tenth * count // TENTHS, (tenth + 1) * count // TENTHS):
            if number % 500 == 0:
                assert sidecar.ask("encode", {"image": page}).ok  # large, hence rare
            assert chance.choice(kinds)()
        rss, opened = _held(sidecar)
        resident.append(rss)
        descriptors.append(opened)
        print(
            f"{(tenth + 1) * count // TENTHS} requests in {time.monotonic() - begun:.0f} s: "
            f"{rss / 2**20:.1f} MiB, {opened} descriptors",
            flush=True,
        )
    # It goes up and down by a tenth, as the allocator pleases: what stays shows in medians.
    early, late = median(resident[: TENTHS // 2]), median(resident[TENTHS // 2 :])
    print(f"medians of both halves: {early / 2**20:.1f} and {late / 2**20:.1f} MiB")
    assert late <= early * GROWTH
    assert descriptors[-1] <= descriptors[0]


def _cancelled(sidecar: Client, rgb: np.ndarray) -> bool:
    id = sidecar.submit("encode", {"rgb": rgb})
    sidecar.ask("cancel", params={"target": id})
    return sidecar.reply(id).code in ("request.cancelled", "ok")


def _held(sidecar: Client) -> tuple[int, int]:
    """Resident bytes and open descriptors."""
    rss = sidecar.ask("stats").header["memory"]["rss_bytes"]
    return rss, len(os.listdir(f"/proc/{sidecar.process.pid}/fd"))  # noqa: PTH208


def kills(directory: Path, count: int) -> None:
    """Raises AssertionError where a sidecar outlives its parent by more than a second."""
    model = stand_in.make(directory / "slow", slow=True)
    longest = 0.0
    for number in range(count):
        state = STATES[number % len(STATES)]
        words = [sys.executable, "-m", "tests.sidecar.parent", str(model), state]
        parent = subprocess.Popen(
            words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        died = time.monotonic()
        while _alive(child):
            assert time.monotonic() < died + DEATH_S, f"a survivor, {state}"
            time.sleep(0.002)
        longest = max(longest, time.monotonic() - died)
        parent.stdout.close()
    print(f"{count} parents killed, no survivor; the longest took {longest * 1e3:.0f} ms")


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"  # gone, but not yet asked after


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--kills", type=int, default=200)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        model = stand_in.make(directory / "model")
        with (directory / "log").open("wb") as log, ZmqClient(model, stderr=log) as sidecar:
            requests(sidecar, chosen.requests)
        kills(directory, chosen.kills)


if __name__ == "__main__":
    main()
