"""A sidecar as a child, and the least client that can talk to it: the bridge's work, in Python."""

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, Self

import msgpack
import numpy as np
import zmq

ROOT = Path(__file__).parents[1]


class Sidecar:
    """Spawned with `command` and `serve`'s `arguments`; `ready_s` counts from just before that."""

    def __init__(self, command: Sequence[str], model: str | Path, *arguments: str) -> None:
        public, secret = zmq.curve_keypair()
        begun = perf_counter()
        self.process = subprocess.Popen(
            [*command, "serve", "--model", str(model), *arguments],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self.process.stdin is not None
        offer = {"protocol": [1, 1], "client_public_key": public.decode()}
        self.process.stdin.write(json.dumps(offer).encode() + b"\n")
        self.process.stdin.flush()
        listening = self._event("listening")
        self.listening_s = perf_counter() - begun
        self._event("ready")
        self.ready_s = perf_counter() - begun
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.curve_publickey = public
        self._socket.curve_secretkey = secret
        self._socket.curve_serverkey = listening["server_public_key"].encode()
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.connect(listening["endpoint"])
        self._next = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._context.destroy(0)
        assert self.process.stdin is not None
        self.process.stdin.close()  # the sidecar's sign that its parent has gone
        self.process.wait(10)

    def call(
        self, op: str, inputs: Mapping[str, np.ndarray] | None = None, **params: Any
    ) -> dict[str, Any]:
        """Send a request and wait for its reply's header. Raises RuntimeError if it failed."""
        self.send(op, inputs, **params)
        return self.receive()

    def send(self, op: str, inputs: Mapping[str, np.ndarray] | None = None, **params: Any) -> None:
        """Send a request without waiting."""
        arrays = dict(inputs or {})
        header = {
            "v": 1,
            "id": self._next,
            "op": op,
            "inputs": [
                {
                    "name": name,
                    "datatype": "UINT8" if array.dtype == np.uint8 else "FP32",
                    "shape": list(array.shape),
                }
                for name, array in arrays.items()
            ],
            "params": params,
        }
        self._next += 1
        frames: list[Any] = [msgpack.packb(header), *arrays.values()]
        self._socket.send_multipart(frames, copy=False)

    def receive(self) -> dict[str, Any]:
        """Wait for the next reply's header. Raises RuntimeError if it failed."""
        header: dict[str, Any] = msgpack.unpackb(self._socket.recv_multipart(copy=False)[0].buffer)
        if not header["ok"]:
            raise RuntimeError(f"the sidecar answered {header['error']}")
        return header

    def cpu_s(self) -> float:
        """Processor time used so far. Linux only."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def status_bytes(self, name: str) -> int:
        """`VmRSS`, what is held now, or `VmHWM`, the most so far. Linux only."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
        raise KeyError(name)

    def forget_peak(self) -> None:
        """Count `VmHWM` from now on. Linux only."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def _event(self, name: str) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        event: dict[str, Any] = json.loads(line) if line else {"event": "end of file"}
        if event["event"] != name:
            self.process.kill()
            raise RuntimeError(f"the sidecar did not start; expected {name}, it said {event}")
        return event
