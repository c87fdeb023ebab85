"""Model directories that were valid until something happened to the manifest, to the files, or to
both, loaded as the sidecar loads them.

    python -m tests.attack.mutated_models [--count 3000] [--seed 0]

Of three of four the manifest is mutated. Each is refused with one sentence, or the model loads and
`hello` tells of it; none leaves memory behind.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from sidecar import engine, manifest, protocol, session
from sidecar.errors import ModelInvalid, ModelUnfaithful, ResourcesExhausted
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
GRAPH, GOLDEN = "vision_encoder_quant.onnx", "golden.npz"
WARM = 0.2  # of the mutants, before memory is looked at first
GROWTH = 32 * 2**20  # bytes, for the heap's fragments

Files = dict[str, bytes]  # of a model directory, by name


def original(directory: Path) -> Files:
    """A model with a golden record, made in `directory`."""
    stand_in.make(directory)
    side = min(stand_in.SIDES)
    engine.record(session.Session(directory / GRAPH), side, directory / GOLDEN)
    return {name: (directory / name).read_bytes() for name in (GRAPH, GOLDEN, manifest.NAME)}


def mutants(whole: Files, seed: int) -> Iterator[Files]:
    """Without end; the same for the same `seed`. A file that changed has the right hash."""
    chance = random.Random(seed)
    fields = json.loads(whole[manifest.NAME]) | {"golden": GOLDEN}
    while True:
        files = {name: whole[name] for name in (GRAPH, GOLDEN)}
        changed = chance.choice(["manifest", "manifest", "files", "both"])
        if changed != "manifest":
            name = chance.choice(list(files))
            files[name] = _scratch_bytes(files[name], chance)
        content = copy.deepcopy(fields) | {"files": _listed(files)}
        if changed != "files":
            for _ in range(chance.randint(1, 3)):
                _mutate(content, chance)
        text = json.dumps(content)
        if changed != "files" and chance.random() < 0.2:
            text = _scratch(text, chance)
        yield files | {manifest.NAME: text.encode("utf-8", "surrogatepass")}


def _listed(files: Mapping[str, bytes]) -> dict[str, Any]:
    return {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in files.items()
    }


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


def _scratch_bytes(data: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(data))
    match chance.randrange(4):
        case 0:
            return data[:at]
        case 1:
            return data[:at] + data[at + chance.randrange(1, 9) :]
        case 2:
            return data[:at] + chance.randbytes(chance.randrange(1, 9)) + data[at:]
    return data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]


def outcome(directory: Path, limits: Limits) -> str:
    """The code of the error, or "ok" once `hello` could tell of the model."""
    try:
        described = manifest.read(directory)
        with ModelFiles(directory, described) as files:
            engine.select(files, threads=1, kernels="off")
            files.check_unchanged()
    except (ModelInvalid, ModelUnfaithful, ResourcesExhausted) as error:
        return error.code  # the last where a graph now asks for more memory than there is
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
    """How many were answered by which code; anything else that is raised is a fault of ours.
    AssertionError where memory is left behind.
    """
    whole = original(directory / "model")
    written: Files = {}  # a file that was just written is waited for, so only what changes is
    codes: Counter[str] = Counter()
    before = 0
    for number, files in enumerate(islice(mutants(whole, seed), count)):
        for name, data in files.items():
            if written.get(name) != data:
                (directory / "model" / name).write_bytes(data)
        written = files
        try:
            codes[outcome(directory / "model", Limits())] += 1
        except Exception:
            print(f"{number} of seed {seed}: {files[manifest.NAME][:2000]!r}")
            raise
        if number == int(count * WARM):
            before = memory().get("rss_bytes", 0)
    left = memory().get("rss_bytes", 0) - before
    assert left < GROWTH, f"{left} bytes were left behind"
    return codes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        codes = run(Path(directory), chosen.seed, chosen.count)
    counts = ", ".join(f"{number} {code}" for code, number in codes.most_common())
    held = memory()
    now, peak = (held.get(name, 0) / 2**20 for name in ("rss_bytes", "peak_rss_bytes"))
    seconds = time.monotonic() - begun
    print(
        f"{chosen.count} model directories in {seconds:.0f} s: {counts}; "
        f"{now:.0f} MiB at the end, at most {peak:.0f}"
    )


if __name__ == "__main__":
    main()
