"""Manifests that were valid until something happened to them, read as the sidecar reads them.

    python -m tests.attack.mutated_manifests [--count 2000] [--seed 0]

Each is refused with one sentence, or the model loads and `hello` tells of it.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from sidecar import engine, manifest, protocol
from sidecar.errors import ModelInvalid, ModelUnfaithful
from sidecar.model_files import ModelFiles
from sidecar.protocol import Done
from sidecar.service import Service
from sidecar.settings import Limits
from sidecar.stats import memory
from tests import stand_in

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 14, 16, 224, 2**31, 2**53, 2**63, 10**400, -0.0, 1e-320, 1e308),
    *(float("nan"), float("inf"), "", "14", "x" * 70_000, "\ud800", "\x00", "../../etc/passwd"),
    *("vision_encoder_quant.onnx", "manifest.json", "a" * 64, [], {}, [[]], [224], [0.5] * 3),
    {"bytes": 0, "sha256": "0" * 64},
)
DEEP = "[" * 100_000


def mutants(original: str, seed: int) -> Iterator[bytes]:
    """Without end; the same for the same `seed`."""
    chance = random.Random(seed)
    while True:
        content = json.loads(original)
        for _ in range(chance.randint(1, 3)):
            _mutate(content, chance)
        text = json.dumps(content)
        if chance.random() < 0.2:
            text = _scratch(text, chance)
        yield text.encode("utf-8", "surrogatepass")


def _mutate(content: Any, chance: random.Random) -> None:
    """One change somewhere below: a value, a key, or a part of it gone or twice."""
    inner = content
    while True:
        keys = list(inner) if isinstance(inner, dict) else list(range(len(inner)))
        if not keys:
            return
        key = chance.choice(keys)
        if not isinstance(inner[key], dict | list) or not inner[key] or chance.random() < 0.3:
            break
        inner = inner[key]
    match chance.randrange(5):
        case 0:
            del inner[key]
        case 1 if isinstance(inner, dict):
            inner[chance.choice(["", "../x", "x" * 300, "224", "é", "graph"])] = inner.pop(key)
        case 2 if isinstance(inner, list):
            inner.insert(key, copy.deepcopy(inner[key]))
        case 3:
            inner[key] = copy.deepcopy(content[chance.choice(list(content))]) if content else None
        case _:
            inner[key] = copy.deepcopy(chance.choice(VALUES))


def _scratch(text: str, chance: random.Random) -> str:
    at = chance.randrange(len(text))
    match chance.randrange(4):
        case 0:
            return text[:at]
        case 1:
            return text[:at] + chance.choice('"{}[],:0\\e-\x00\ufeff') + text[at + 1 :]
        case 2:
            return text[:at] + chance.choice([DEEP, "9" * 5000, " " * 2**20, '"\\ud800"'])
    return text[: at + 9] + text[at:]


def outcome(directory: Path, limits: Limits) -> str:
    """The code of the error, or "ok" once `hello` could tell of the model."""
    try:
        described = manifest.read(directory)
        with ModelFiles(directory, described) as files:
            engine.select(files, threads=1, kernels="off")
            files.check_unchanged()
    except (ModelInvalid, ModelUnfaithful) as error:
        return error.code
    service = Service(
        described,
        load=lambda: None,  # type: ignore[arg-type,return-value]
        limits=limits,
        deliver=lambda *_: None,
        on_ready=lambda: None,
        on_finished=lambda _: None,
    )
    protocol.encode(Done(1, fields=service._hello()))
    return "ok"


def run(directory: Path, seed: int, count: int) -> Counter[str]:
    """How many were answered by which code; anything else that is raised is a fault of ours."""
    path = stand_in.make(directory / "model") / manifest.NAME
    original = path.read_text("utf-8")
    codes: Counter[str] = Counter()
    for data in islice(mutants(original, seed), count):
        path.write_bytes(data)
        try:
            codes[outcome(path.parent, Limits())] += 1
        except Exception:
            print(f"{len(data)} bytes: {data[:2000]!r}")
            raise
    return codes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        codes = run(Path(directory), chosen.seed, chosen.count)
    counts = ", ".join(f"{number} {code}" for code, number in codes.most_common())
    peak = memory().get("peak_rss_bytes", 0) / 2**20
    seconds = time.monotonic() - begun
    print(f"{chosen.count} manifests in {seconds:.0f} s: {counts}; at most {peak:.0f} MiB")


if __name__ == "__main__":
    main()
