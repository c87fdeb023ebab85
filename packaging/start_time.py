"""How long the bundle takes from its start to `ready`, against the module on the same machine.

    .venv/bin/python packaging/start_time.py dist/vision-sidecar MODEL [ROUNDS]

Fails if the median of the bundle is above 1.5 times that of the module. Rounds alternate, so that
whatever else the machine does falls on both.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import zmq

ROOT = Path(__file__).resolve().parents[1]
BOUND = 1.5


def seconds_to_ready(command: list[str], model: Path) -> float:
    """Spawn `serve`, say hello, and wait for its `ready`."""
    public_key, _ = zmq.curve_keypair()
    hello = {"protocol": [1, 1], "client_public_key": public_key.decode()}
    begun = time.perf_counter()
    child = subprocess.Popen(
        [*command, "serve", "--model", str(model)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(json.dumps(hello).encode() + b"\n")
    child.stdin.flush()
    for line in child.stdout:
        event = json.loads(line)
        if event["event"] == "ready":
            break
        if event["event"] == "fatal":
            raise SystemExit(f"{command[0]}: {event['message']}")
    taken = time.perf_counter() - begun
    child.communicate()  # closes its stdin, which ends it
    return taken


def main() -> int:
    """Print both medians and their ratio."""
    bundle, model = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
    rounds = int(sys.argv[3]) if len(sys.argv) > 3 else 10
    commands = {
        "module": [sys.executable, "-m", "sidecar"],
        "bundle": [str(bundle / ("vision-sidecar.exe" if os.name == "nt" else "vision-sidecar"))],
    }
    for command in commands.values():
        seconds_to_ready(command, model)  # the first reads files that later ones find in memory
    taken: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            taken[name].append(seconds_to_ready(command, model))
    print(f"{platform.platform()}, Python {platform.python_version()}, {os.cpu_count()} CPUs")
    for name, each in taken.items():
        low, high = min(each), max(each)
        print(f"{name}  {statistics.median(each):.3f} s to ready ({low:.3f} to {high:.3f})")
    ratio = statistics.median(taken["bundle"]) / statistics.median(taken["module"])
    print(f"ratio   {ratio:.2f}, of at most {BOUND}")
    return 0 if ratio <= BOUND else 1


if __name__ == "__main__":
    sys.exit(main())
