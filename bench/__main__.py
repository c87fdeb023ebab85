"""The benchmark: one run, one machine; a table on stdout and every figure in out/bench.json.

python -m bench [--full] [--quick] [--demo DIR] [--only SECTION…] [--rows ROW…]
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from bench import app, guest, machine, report, rounds
from bench.rows import ROWS, Row, choose
from build.metrics import cosine
from sidecar import priority

ROOT = Path(__file__).parents[1]
WORK = ROOT / ".work" / "bench"
OUT = ROOT / "out" / "bench.json"
LAYERS, FULL_LAYERS = 4, 27
SIDE = 896
REFERENCE = "torch"


@dataclass(frozen=True)
class Effort:
    """How often and how long things are measured."""

    rounds: int
    runs: int  # of an engine, in a round
    times: int  # of a request or a start
    seconds: float  # of idleness
    beating: float  # seconds of heartbeat
    files: int


THOROUGH = Effort(rounds=5, runs=2, times=15, seconds=60, beating=30, files=100)
FULL = Effort(rounds=3, runs=1, times=5, seconds=60, beating=60, files=100)
QUICK = Effort(rounds=1, runs=1, times=3, seconds=5, beating=5, files=12)


@dataclass(frozen=True)
class Bench:
    layers: int
    threads: int
    effort: Effort
    rows: Sequence[Row]
    fidelity: bool
    demo: str | None  # a model directory, where it need not be built

    def engines(self) -> dict[str, Any]:
        """Every row: seconds, memory, bytes, nearness to FP32, and fidelity on the demo."""
        names = sorted({row.model for row in self.rows} | {"checkpoint"})
        made = _child("bench.models", str(self.layers), *names)
        scratch = WORK / "outputs"
        scratch.mkdir(parents=True, exist_ok=True)
        image = scratch / "image.f32"
        random = np.random.default_rng(0)
        (2 * random.random((1, 3, SIDE, SIDE), np.float32) - 1).tofile(image)
        found = rounds.interleave(
            self.rows,
            made,
            image,
            SIDE,
            threads=self.threads,
            rounds=self.effort.rounds,
            runs=self.effort.runs,
            scratch=scratch,
            tell=_tell,
        )
        if REFERENCE not in found or "missing" in found[REFERENCE]:
            (reference,) = choose([REFERENCE])
            rounds.run(
                reference,
                made[reference.model],
                [image],
                SIDE,
                threads=self.threads,
                warmups=0,
                runs=1,
                outputs=scratch / REFERENCE,
            )
        expected = _tokens(scratch / REFERENCE)
        for name, figures in found.items():
            if "missing" not in figures:
                each = cosine(expected, _tokens(scratch / name))
                figures["cosine"] = {"mean": float(each.mean()), "min": float(each.min())}
        if not self.fidelity:
            left_out = {"fidelity": {"missing": "fidelity was left out."}}
            return {name: figures | left_out for name, figures in found.items()}
        _tell("fidelity on the demo checkpoint …")
        fidelity = _child("bench.fidelity", str(self.threads), "rows", *(r.name for r in self.rows))
        return {name: figures | {"fidelity": fidelity[name]} for name, figures in found.items()}

    def round_trip(self) -> dict[str, Any]:
        """Of a native RGB image, less its inference."""
        model = self._model()
        return {
            "Python client": guest.round_trip(model, self.threads, self.effort.times),
            "bridge, Node": app.round_trip(model, self.threads, self.effort.times),
        }

    def start(self) -> dict[str, Any]:
        """From spawn to ready."""
        return {
            name: guest.starts(model, self.threads, self.effort.times)
            for name, model in (("demo", self._demo()), (self._name(), self._model()))
        }

    def resolutions(self) -> dict[str, Any]:
        """Time and memory by resolution, and what a smaller one is worth."""
        agreement = _child("bench.fidelity", str(self.threads), "resolutions")
        measured = guest.resolutions(self._model(), self.threads, max(2, self.effort.times // 3))
        return {
            name: figures | {"agreement": agreement.get(name)} for name, figures in measured.items()
        }

    def bulk(self) -> dict[str, Any]:
        """Files one after another through the bridge, on the demo model."""
        files = _child("bench.pictures", str(WORK / "pictures"))
        return app.bulk(self._demo(), self.threads, files, self.effort.files)

    def idle(self) -> dict[str, Any]:
        """A sidecar that waits."""
        return guest.idle(self._model(), self.threads, self.effort.seconds)

    def heartbeat(self) -> dict[str, Any]:
        """Another process while all cores encode."""
        return guest.heartbeat(self._model(), priority.physical_cores(), self.effort.beating)

    def _name(self) -> str:
        return f"{self.layers} layers"

    def _model(self) -> str:
        return str(_child("bench.models", str(self.layers), "default")["default"]["path"])

    def _demo(self) -> str:
        return self.demo or str(_child("bench.models", "demo", "default")["default"]["path"])


SECTIONS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "engines": Bench.engines,
    "round_trip": Bench.round_trip,
    "start": Bench.start,
    "resolutions": Bench.resolutions,
    "bulk": Bench.bulk,
    "idle": Bench.idle,
    "heartbeat": Bench.heartbeat,
}


def main(argv: Sequence[str] | None = None) -> int:
    chosen = _arguments(argv)
    layers = chosen.layers or (FULL_LAYERS if chosen.full else LAYERS)
    threads = chosen.threads or priority.physical_cores() or os.cpu_count() or 1
    effort = QUICK if chosen.quick else FULL if chosen.full else THOROUGH
    bench = Bench(layers, threads, effort, choose(chosen.rows), not chosen.no_fidelity, chosen.demo)
    result: dict[str, Any] = {
        "command": " ".join(["python -m bench", *(sys.argv[1:] if argv is None else argv)]),
        "begun": datetime.now(UTC).isoformat(timespec="seconds"),
        "layers": layers,
        "machine": machine.describe(threads),
        "sections": {},
        "others_cpu_share": {},
    }
    print(report.heading(result), flush=True)
    for name in chosen.only or SECTIONS:
        others = machine.Neighbours()
        found = SECTIONS[name](bench)
        result["sections"][name] = found
        result["others_cpu_share"][name] = others.share()
        print(report.section(name, found, others.share()), flush=True)
        OUT.parent.mkdir(exist_ok=True)
        OUT.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    print(f"\nEvery figure: {OUT.relative_to(ROOT)}")
    return 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--full", action="store_true", help=f"all {FULL_LAYERS} layers")
    parser.add_argument("--layers", type=int, help=f"default: {LAYERS}")
    parser.add_argument("--quick", action="store_true", help="once each: to see that it works")
    parser.add_argument("--threads", type=int, help="default: one per physical core")
    parser.add_argument("--demo", metavar="DIR", help="the built demo model: it is not built anew")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=[], metavar="SECTION")
    parser.add_argument(
        "--rows", nargs="+", choices=[row.name for row in ROWS], default=[], metavar="ROW"
    )
    parser.add_argument("--no-fidelity", action="store_true", help="times and memory alone")
    return parser.parse_args(argv)


def _child(module: str, *arguments: str) -> Any:
    """The JSON that a module of ours prints. What takes much memory is done in such a child."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def _tokens(outputs: Path) -> Any:
    return np.fromfile(outputs / "0.projected_embeddings", np.float32).reshape(256, -1)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
