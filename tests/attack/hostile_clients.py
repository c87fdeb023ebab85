"""Clients and strangers that mean harm, each with a bound; loopback only.

    python -m tests.attack.hostile_clients [--messages 200000] [--requests 6000]

Every attack raises AssertionError where something got through. test_clients.py has the short forms.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import socket
import struct
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tests import client, fuzz, stand_in, waiting
from tests.client import Client, ZmqClient

MEBIBYTE = 2**20
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00CURVE" + bytes(15) + b"\x00" + bytes(31)
COMMAND, LARGE = 0x04, 0x02  # flags of a ZMTP frame

until = partial(waiting.until, patience=client.PATIENCE)


def held(sidecar: Client) -> int:
    """Resident bytes."""
    return int(sidecar.ask("stats").header["memory"]["rss_bytes"])


def connections(sidecar: ZmqClient, count: int) -> Iterator[socket.socket]:
    """A stranger's, which say nothing, or the first bytes of a handshake and no more."""
    host, port = sidecar.listening["endpoint"].removeprefix("tcp://").split(":")
    for index in range(count):
        stranger = socket.create_connection((host, int(port)))
        stranger.sendall((b"", GREETING[:20], GREETING)[index % 3])
        yield stranger


def use_up_descriptors(sidecar: ZmqClient, count: int) -> None:
    """A stranger holds connections open; the client's requests are answered all the same."""
    with contextlib.ExitStack() as stack:
        for stranger in connections(sidecar, count):
            stack.enter_context(stranger)
        stats = sidecar.ask("stats")
        assert stats.ok, stats.header
        assert sidecar.ask("encode", {"rgb": np.zeros((9, 9, 3), np.uint8)}).ok


def fill_memory_without_a_key(sidecar: ZmqClient, strangers: int, size: int) -> None:
    """Frames of `size` bytes before any key was shown: their memory is given back."""
    before = held(sidecar)
    frame = struct.pack(">BQ", COMMAND | LARGE, size) + bytes(size)
    for stranger in connections(sidecar, strangers):
        with stranger, contextlib.suppress(OSError):
            stranger.sendall(GREETING + frame)
        assert sidecar.ask("hello").ok
    until(
        lambda: held(sidecar) < before + 32 * MEBIBYTE, what="the strangers' memory is given back"
    )


def use_ids_again(sidecar: Client, count: int, seed: int) -> Counter[str]:
    """Random requests whose ids are used again, in flight or not: one reply each, no more."""
    chance = random.Random(seed)
    rgb = {"rgb": np.zeros((9, 9, 3), np.uint8)}
    kinds: list[Callable[[int], tuple[str, Any, Any]]] = [
        lambda _: ("hello", None, {}),
        lambda _: ("stats", None, {}),
        lambda _: ("nothing", None, {}),
        lambda _: ("encode", rgb, {"resolution": 224, "priority": chance.choice(["low", None])}),
        lambda _: ("encode", rgb, {"resolution": 5}),
        lambda _: ("encode", {"image": b"no image"}, {}),
        lambda _: ("encode", {"image": b"x"}, {"heatmap": {"alpha": 2}}),
        lambda top: ("cancel", None, {"target": chance.randrange(top)}),
        lambda top: ("cancel", None, {"target": -1}),
    ]
    owed: Counter[int] = Counter()
    duplicates = 0
    codes: Counter[str] = Counter()
    open_replies = 0

    def settle(to: int) -> None:
        nonlocal duplicates, open_replies
        while open_replies > to:
            reply = sidecar.next()
            open_replies -= 1
            codes[reply.code] += 1
            assert reply.code != "internal", reply.header
            id = reply.header["id"]
            if id is None:
                id = reply.header["error"]["duplicate_of"]
                duplicates += 1
            owed[id] -= 1
            assert owed[id] >= 0, f"a second reply to {id}"

    for _ in range(count):
        id = chance.randrange(24)
        op, inputs, params = chance.choice(kinds)(24)
        sidecar.submit(op, inputs, params, id=id)
        owed[id] += 1
        open_replies += 1
        settle(chance.choice((0, 8, 24)))
    settle(0)
    assert not any(owed.values())
    codes["(of them duplicates)"] = duplicates
    return codes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--messages", type=int, default=200_000)
    parser.add_argument("--requests", type=int, default=6_000)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        model = stand_in.make(directory / "model")
        with (directory / "log").open("wb") as log, ZmqClient(model, stderr=log) as sidecar:
            use_up_descriptors(sidecar, 300)
            print("300 half-open connections: the client is answered")
            fill_memory_without_a_key(sidecar, 6, 64 * MEBIBYTE)
            print("6 x 64 MiB before a key: given back")
            print(f"{chosen.requests} requests: {use_ids_again(sidecar, chosen.requests, 0)}")
            begun = held(sidecar)
            codes = fuzz.run(sidecar, 1, chosen.messages)
            grown = held(sidecar) - begun
            print(f"{chosen.messages} mutated messages: {codes}; memory grew by {grown} bytes")
            assert grown < 32 * MEBIBYTE


if __name__ == "__main__":
    main()
