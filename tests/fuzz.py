"""Messages that were valid until something happened to them, sent to a real sidecar.

    python -m tests.fuzz [--count 100000] [--transport zmq|stdio] [--seed 0]

After every one the connection must still answer; the sidecar must never answer `internal`.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from tests import client, stand_in
from tests.client import Frames, message

GOLDEN = Path(__file__).parent / "golden" / "requests"
NUMBERS = (-1, 0, 1, 2**32, 2**63, 1.5, float("nan"))
VALUES: tuple[Any, ...] = (None, True, *NUMBERS, "", "x" * 300, b"", [], {}, [[]])
INTERESTING = (b"\x00", b"\xff", b"\xc1", b"\xc7", b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff")


def messages(seed: int, count: int) -> Iterator[Frames]:
    """The same `count` messages for the same `seed`; none of them a shutdown."""
    chance = random.Random(seed)
    originals = _originals()
    given = 0
    while given < count:
        frames = list(chance.choice(originals))
        for _ in range(chance.randint(1, 3)):
            frames = _mutate(frames, chance)
        if b"\xa8shutdown" not in b"".join(frames):
            given += 1
            yield frames


def _originals() -> list[Frames]:
    tensor = np.zeros((1, 3, 4, 4), np.float32)
    params = {"resolution": 5, "outputs": ["heatmap_png"], "heatmap": {"alpha": 0.5}}
    mine = [
        message("encode", 9, {"pixel_values": tensor}, params),
        message("encode", 10, {"image": b"\x89PNG\r\n\x1a\n" + bytes(20)}, params),
        message("encode", 11, {"rgb": np.zeros((2, 2, 3), np.uint8)}, params),
        message("cancel", 12, params={"target": 9}),
        message("hello", 13),
        message("stats", 14),
    ]
    golden = [
        [bytes.fromhex(line) for line in path.read_text("ascii").splitlines()]
        for path in sorted(GOLDEN.glob("*.hex"))
        if path.stem not in ("shutdown", "collection-add")  # a mutated path would make a file
    ]
    return mine + golden


def _mutate(frames: Frames, chance: random.Random) -> Frames:
    at = chance.randrange(len(frames))
    frame = frames[at]
    here = chance.randrange(len(frame) + 1)
    match chance.randrange(9):
        case 0:  # a bit
            if frame:
                changed = bytearray(frame)
                changed[here % len(frame)] ^= 1 << chance.randrange(8)
                frames[at] = bytes(changed)
        case 1:  # cut short
            frames[at] = frame[:here]
        case 2:  # something put in
            frames[at] = frame[:here] + chance.choice(INTERESTING) + frame[here:]
        case 3:  # a piece twice
            frames[at] = frame[:here] + frame[max(here - 9, 0) :]
        case 4:
            frames.insert(at, frame)
        case 5:
            del frames[at]
            frames = frames or [b""]  # ZeroMQ knows no message without a frame
        case 6:
            frames.append(chance.randbytes(chance.randrange(40)))
        case 7:
            chance.shuffle(frames)
        case 8:
            frames[0] = _change_header(frames[0], chance)
    return frames


def _change_header(header: bytes, chance: random.Random) -> bytes:
    """Another value for one key, at any depth."""
    try:
        whole = msgpack.unpackb(header)
    except Exception:
        return header
    inner = whole
    while isinstance(inner, dict | list) and inner:
        key = chance.choice(list(inner) if isinstance(inner, dict) else range(len(inner)))
        if not isinstance(inner[key], dict | list) or chance.random() < 0.4:
            inner[key] = chance.choice(VALUES)
            break
        inner = inner[key]
    try:
        return bytes(msgpack.packb(whole))
    except Exception:
        return header


def run(sidecar: client.Client, seed: int, count: int) -> Counter[str]:
    """Send them; the number of replies by code. Raises AssertionError where one is wrong."""
    codes: Counter[str] = Counter()
    for number, frames in enumerate(messages(seed, count)):
        sidecar.send(frames)
        sidecar.send(message("hello", 3_000_000_000 + number % 1_000_000))
        seen_hello = answered = False
        while not (seen_hello and answered):
            reply = sidecar.next()
            if reply.header["id"] == 3_000_000_000 + number % 1_000_000 and reply.ok:
                seen_hello = True
                continue
            answered = True
            codes[reply.code] += 1
            assert reply.code != "internal", (number, frames, reply.header)
    return codes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--transport", choices=("zmq", "stdio"), default="zmq")
    chosen = parser.parse_args()
    kind = {"zmq": client.ZmqClient, "stdio": client.StdioClient}[chosen.transport]
    with tempfile.TemporaryDirectory() as directory:
        model = stand_in.make(Path(directory) / "model")
        begun = time.monotonic()
        with (Path(directory) / "log").open("wb") as log, kind(model, stderr=log) as sidecar:
            codes = run(sidecar, chosen.seed, chosen.count)
            assert sidecar.ask("shutdown").ok
            assert sidecar.process.wait(2) == 0
    print(f"{chosen.count} messages over {chosen.transport}, {time.monotonic() - begun:.0f} s")
    for code, number in codes.most_common():
        print(f"{number:8} {code}")


if __name__ == "__main__":
    main()
