"""A small client of the sidecar's process, over ZeroMQ and over stdio, with one interface.

Written against docs/protocol.md, not against sidecar/: it shares no code with what it tests.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import queue
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

import msgpack
import numpy as np
import zmq

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 120.0  # seconds after which a test fails rather than hangs
DTYPES: dict[str, np.dtype[Any]] = {"FP32": np.dtype("<f4"), "UINT8": np.dtype("u1")}

Frames = list[bytes]


def command() -> list[str]:
    """The frozen program that VISION_SIDECAR names, else the module."""
    program = os.environ.get("VISION_SIDECAR")
    return [str(Path(program).resolve())] if program else [sys.executable, "-m", "sidecar"]


def run_cli(*words: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """One run of the command line to its end, its output as text."""
    whole = [*command(), *map(str, words)]
    settings: dict[str, Any] = {"capture_output": True, "timeout": PATIENCE, "cwd": ROOT}
    return subprocess.run(whole, check=False, text=True, **(settings | options))


@dataclass(frozen=True)
class Reply:
    header: dict[str, Any]
    payloads: Frames

    @property
    def ok(self) -> bool:
        return bool(self.header["ok"])

    @property
    def code(self) -> str:
        """`ok`, or that of the error."""
        return "ok" if self.ok else str(self.header["error"]["code"])

    @property
    def message(self) -> str:
        return str(self.header["error"]["message"])

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        return {
            output["name"]: np.frombuffer(payload, DTYPES[str(output["datatype"])]).reshape(
                output["shape"]
            )
            for output, payload in zip(self.header["outputs"], self.payloads, strict=True)
        }


def message(
    op: str, id: int, inputs: Mapping[str, Any] | None = None, params: Mapping[str, Any] = {}
) -> Frames:
    """`inputs` are arrays, or bytes for `image`."""
    arrays = {name: _array(value) for name, value in (inputs or {}).items()}
    names = {dtype: name for name, dtype in DTYPES.items()}
    declared = [
        {"name": name, "datatype": names[array.dtype], "shape": list(array.shape)}
        for name, array in arrays.items()
    ]
    header = {"v": 1, "id": id, "op": op, "inputs": declared, "params": dict(params)}
    return [msgpack.packb(header), *(array.tobytes() for array in arrays.values())]


def _array(value: Any) -> np.ndarray:
    if isinstance(value, bytes):
        return np.frombuffer(value, np.uint8)
    return np.asarray(value)


class Client:
    """A sidecar process and one conversation with it; `with` ends both."""

    process: subprocess.Popen[bytes]

    def __init__(self, model: Path, *flags: str, **options: Any) -> None:
        self.ids = itertools.count(1)
        self._early: list[Reply] = []  # that came while another was awaited
        self.log: list[str] = []  # the lines of stderr, all of them once `close` has returned
        self._readers: list[threading.Thread] = []

    def send(self, frames: Sequence[bytes]) -> None:
        raise NotImplementedError

    def receive(self, seconds: float = PATIENCE) -> Frames:
        """The frames of the next reply. Raises TimeoutError, or EOFError if none can come."""
        raise NotImplementedError

    def submit(
        self,
        op: str,
        inputs: Mapping[str, Any] | None = None,
        params: Mapping[str, Any] = {},
        id: int | None = None,
    ) -> int:
        id = next(self.ids) if id is None else id
        self.send(message(op, id, inputs, params))
        return id

    def next(self, seconds: float = PATIENCE) -> Reply:
        """The next reply, whatever it answers."""
        if self._early:
            return self._early.pop(0)
        header, *payloads = self.receive(seconds)
        return Reply(msgpack.unpackb(header), payloads)

    def reply(self, id: int | None, seconds: float = PATIENCE) -> Reply:
        """The reply to `id`; others are kept for later."""
        for reply in self._early:
            if reply.header["id"] == id:
                self._early.remove(reply)
                return reply
        kept, self._early = self._early, []
        end = time.monotonic() + seconds
        try:
            while True:
                found = self.next(max(end - time.monotonic(), 0.001))
                if found.header["id"] == id:
                    return found
                kept.append(found)
        finally:
            self._early = kept

    def ask(
        self, op: str, inputs: Mapping[str, Any] | None = None, params: Mapping[str, Any] = {}
    ) -> Reply:
        """Send one request and wait for its reply."""
        return self.reply(self.submit(op, inputs, params))

    def close(self) -> None:
        """End the process as a parent does that loses interest, and wait for it."""
        if self.process.stdin is not None:
            with contextlib.suppress(OSError):
                self.process.stdin.close()
        try:
            self.process.wait(PATIENCE)
        finally:
            self.process.kill()
            self.process.wait()
            for reader in self._readers:
                reader.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _spawn(self, words: Sequence[str], **options: Any) -> None:
        settings: dict[str, Any] = {"stderr": subprocess.PIPE, "cwd": ROOT} | options
        self.process = subprocess.Popen(
            [*command(), *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, **settings
        )
        if self.process.stderr is not None:
            reader = threading.Thread(target=self._read_log, args=(self.process.stderr,))
            reader.start()
            self._readers.append(reader)

    def _read_log(self, stderr: IO[bytes]) -> None:
        with stderr:
            for line in stderr:
                self.log.append(line.decode())


class StdioClient(Client):
    def __init__(self, model: Path, *flags: str, **options: Any) -> None:
        super().__init__(model, *flags, **options)
        self._replies: queue.SimpleQueue[Frames | None] = queue.SimpleQueue()
        self._spawn(["stdio", "--model", str(model), *flags], **options)
        threading.Thread(target=self._read, daemon=True).start()

    def send(self, frames: Sequence[bytes]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(packed(frames))
        self.process.stdin.flush()

    def receive(self, seconds: float = PATIENCE) -> Frames:
        try:
            frames = self._replies.get(timeout=seconds)
        except queue.Empty:
            raise TimeoutError(f"no reply within {seconds} s") from None
        if frames is None:
            self._replies.put(None)
            raise EOFError("the sidecar closed its stdout")
        return frames

    def _read(self) -> None:
        assert self.process.stdout is not None
        stdout = self.process.stdout
        with stdout, contextlib.suppress(struct.error):
            while True:
                (count,) = struct.unpack("<I", stdout.read(4))
                lengths = (struct.unpack("<I", stdout.read(4))[0] for _ in range(count))
                self._replies.put([stdout.read(length) for length in lengths])
        self._replies.put(None)


class ZmqClient(Client):
    """`ready=False` returns at the `listening` event, before the model is loaded."""

    def __init__(self, model: Path, *flags: str, ready: bool = True, **options: Any) -> None:
        super().__init__(model, *flags, **options)
        self.context = zmq.Context()
        self.public_key, self.secret_key = zmq.curve_keypair()
        self._events: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._spawn(["serve", "--model", str(model), *flags], **options)
        threading.Thread(target=self._read_events, daemon=True).start()
        try:
            self.offer({"protocol": [1, 1], "client_public_key": self.public_key.decode()})
            self.listening = self.event()
            assert self.listening["event"] == "listening", self.listening
            self.socket = self.connect()
            if ready:
                event = self.event()
                assert event == {"event": "ready"}, event
        except BaseException:
            self.close()
            raise

    def offer(self, content: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(content).encode() + b"\n")
        self.process.stdin.flush()

    def event(self, seconds: float = PATIENCE) -> dict[str, Any]:
        """The next line on stdout."""
        line = self._events.get(timeout=seconds)
        if not line:
            raise EOFError("the sidecar closed its stdout")
        event: dict[str, Any] = json.loads(line)
        return event

    def connect(
        self,
        public: bytes | None = None,
        secret: bytes | None = None,
        server: bytes | None = None,
        curve: bool = True,
    ) -> zmq.Socket[bytes]:
        """Another connection, with the pinned keys unless told otherwise."""
        socket = self.context.socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 0)
        if curve:
            socket.curve_publickey = public or self.public_key
            socket.curve_secretkey = secret or self.secret_key
            socket.curve_serverkey = server or self.listening["server_public_key"].encode()
        socket.connect(self.listening["endpoint"])
        return socket

    def send(self, frames: Sequence[bytes]) -> None:
        self.socket.send_multipart(frames)

    def receive(self, seconds: float = PATIENCE) -> Frames:
        end = time.monotonic() + seconds
        while not self.socket.poll(int(min(seconds, 0.2) * 1e3)):
            if self.process.poll() is not None and not self.socket.poll(0):
                raise EOFError("the sidecar has ended")
            if time.monotonic() > end:
                raise TimeoutError(f"no reply within {seconds} s")
        return list(self.socket.recv_multipart())

    def close(self) -> None:
        super().close()
        self.context.destroy(linger=0)

    def _read_events(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as stdout:
            for line in stdout:
                self._events.put(line)
        self._events.put(b"")


def packed(frames: Sequence[bytes]) -> bytes:
    """A message as `stdio` takes it."""
    parts = [struct.pack("<I", len(frame)) + frame for frame in frames]
    return struct.pack("<I", len(frames)) + b"".join(parts)
