"""The command line: settings, manifest, session, encoder, service, transport; and exit codes."""

import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from queue import Empty, SimpleQueue
from time import perf_counter
from typing import BinaryIO, NoReturn

import numpy as np

from sidecar import encoder, handshake, lifeline, log, manifest, session, settings, stdio
from sidecar.encoder import HEATMAP_PNG, ImageFile, Job
from sidecar.errors import ImageUnreadable, ModelInvalid, SidecarError
from sidecar.server import LINGER_MS, Server
from sidecar.service import Service
from sidecar.session import OUTPUTS
from sidecar.settings import Settings

FAILED = 1
END_S = 1.0  # how long a run that was told to end may take to do so


def main(argv: Sequence[str] | None = None) -> NoReturn:
    # Nothing but us may write to the real stdout: a library's print would break the protocol.
    stdout = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    chosen = settings.parse(sys.argv[1:] if argv is None else argv)
    commands = {"serve": serve, "stdio": run_stdio, "encode": run_encode, "verify": verify}
    code = commands[chosen.command](chosen, stdout)
    sys.stderr.flush()
    os._exit(code)  # a run in native code, or a reader that stalls, must not hold us up


def serve(chosen: Settings, stdout: BinaryIO) -> int:
    handler = log.start(sys.stderr)
    ends: SimpleQueue[SidecarError | None] = SimpleQueue()  # safe to fill in a signal handler
    try:
        offer = _read_offer(stdout)
        described = manifest.read(chosen.model)
        server = Server(offer.client_key, chosen.limits)
        service = Service(
            described,
            load=partial(_load, chosen, described),
            limits=chosen.limits,
            deliver=server.deliver,
            on_ready=lambda: _say(stdout, handshake.ready()),
            on_finished=ends.put,
        )
    except SidecarError as error:
        return _fatal(stdout, error)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ends.put(None))
    lifeline.watch(sys.stdin.buffer)
    stopped = threading.Event()

    def on_stopped() -> None:
        stopped.set()
        ends.put(None)

    server.start(service, on_stopped)
    listening = handshake.listening(offer, server.endpoint, server.public_key, os.getpid())
    _say(stdout, listening)
    service.start()

    failure = _wait(ends)
    if failure is not None:
        _say(stdout, handshake.fatal(failure))
    service.end()
    server.stop()
    stopped.wait(LINGER_MS / 1e3 + 0.5)
    handler.flush()
    return FAILED if failure is not None else 0


def run_stdio(chosen: Settings, stdout: BinaryIO) -> int:
    handler = log.start(sys.stderr)
    ends: SimpleQueue[SidecarError | None] = SimpleQueue()
    ready = threading.Event()
    replies = stdio.Replies(stdout)

    def on_finished(failure: SidecarError | None) -> None:
        ends.put(failure)
        ready.set()

    try:
        described = manifest.read(chosen.model)
        service = Service(
            described,
            load=partial(_load, chosen, described),
            limits=chosen.limits,
            deliver=replies.deliver,
            on_ready=ready.set,
            on_finished=on_finished,
        )
        service.start()
        ready.wait()  # a script has no `ready` event to wait for
        if service.state == "loading" and (failure := ends.get()) is not None:
            raise failure
    except SidecarError as error:
        return _complain(error)
    stdio.serve(sys.stdin.buffer, service, chosen.limits.max_frame_bytes)
    _wait(ends)
    handler.flush()
    return 0


def run_encode(chosen: Settings, stdout: BinaryIO) -> int:
    stems = [image.stem for image in chosen.images]
    if len(set(stems)) < len(stems):
        return _complain(ValueError("two images have the same name; encode them one after another"))
    try:
        engine = _load(chosen, manifest.read(chosen.model))
        chosen.out.mkdir(parents=True, exist_ok=True)
    except (SidecarError, OSError) as error:
        return _complain(error)
    failures = 0
    side = chosen.resolution
    for number, image in enumerate(chosen.images, 1):
        where = f"image {number} of {len(chosen.images)}"
        try:
            job = Job(
                ImageFile(_read_image(image)),
                resolution=None if side is None else (side, side),
                outputs=(*OUTPUTS, HEATMAP_PNG),
            )
            encoding = engine.encode(job)
            png = encoding.arrays.pop(HEATMAP_PNG).tobytes()
            npz = BytesIO()
            np.savez(npz, allow_pickle=False, **encoding.arrays)
            _write(chosen.out / f"{image.stem}.npz", npz.getvalue())
            _write(chosen.out / f"{image.stem}.heatmap.png", png)
        except (SidecarError, OSError) as error:
            failures += 1
            _complain(error, where)
        else:
            height, width = encoding.resolution
            line = (
                f"{where}: {height} x {width}, preprocessing {encoding.preprocess_ms:.0f} ms, "
                f"inference {encoding.inference_ms:.0f} ms\n"
            )
            _say(stdout, line.encode())
    return FAILED if failures else 0


def verify(chosen: Settings, stdout: BinaryIO) -> int:
    try:
        described = manifest.read(chosen.model)
        engine = _load(chosen, described)
        side = described.default_resolution
        begun = perf_counter()
        found = engine.session.run(np.zeros((1, 3, side, side), np.float32))
        seconds = perf_counter() - begun
        for name, array in found.items():
            if not np.isfinite(array).all():
                raise ModelInvalid(f"the model's {name} are not finite numbers.")
        shapes = {name: list(array.shape) for name, array in found.items()}
    except SidecarError as error:
        return _complain(error)
    lines = [
        f"model        {described.model_id} at revision {described.revision}",
        f"recipe       {described.recipe}, projection {described.projection}",
        f"resolutions  {', '.join(map(str, described.resolutions))}",
        *(f"file         {name}, {file.bytes} bytes" for name, file in described.files.items()),
        *(f"output       {name} {shape}" for name, shape in shapes.items()),
        f"run          {side} x {side} in {seconds:.2f} s with onnxruntime "
        f"{session.VERSIONS['onnxruntime']}",
        f"digest       {described.digest}",
        "The model directory is as it was built.",
    ]
    _say(stdout, "".join(f"{line}\n" for line in lines).encode())
    return 0


def _load(chosen: Settings, described: manifest.Manifest) -> encoder.Encoder:
    return encoder.load(chosen.model, described, chosen.threads, chosen.limits.max_pixels)


def _read_offer(stdout: BinaryIO) -> handshake.Offer:
    def give_up() -> None:
        os._exit(_fatal(stdout, handshake.late()))

    # A timer, since a pipe cannot be waited for with a time limit on Windows.
    timer = threading.Timer(handshake.TIMEOUT_S, give_up)
    timer.daemon = True
    timer.start()
    line = b""
    while not line.endswith(b"\n") and len(line) <= handshake.MAX_LINE:
        byte = os.read(0, 1)  # no more than the line: what follows is the lifeline's
        if not byte:
            break
        line += byte
    timer.cancel()
    return handshake.parse(line)


def _read_image(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ImageUnreadable(f"the file cannot be read: {error.strerror}.") from error


def _write(path: Path, data: bytes) -> None:
    """All or nothing: a full disk must not leave half a file under its final name."""
    partial_path = path.with_name(f"{path.name}.partial")
    try:
        partial_path.write_bytes(data)
        partial_path.replace(path)
    except OSError as error:
        partial_path.unlink(missing_ok=True)
        raise OSError(error.errno, f"a result cannot be written: {error.strerror}") from None


def _wait(ends: "SimpleQueue[SidecarError | None]") -> SidecarError | None:
    while True:
        try:
            # Windows delivers no signal to a thread that waits without an end.
            return ends.get(timeout=0.5 if os.name == "nt" else None)
        except Empty:
            continue


def _say(stdout: BinaryIO, line: bytes) -> None:
    try:
        stdout.write(line)
        stdout.flush()
    except (OSError, ValueError):
        logging.getLogger(__name__).warning("stdout is closed")


def _fatal(stdout: BinaryIO, error: SidecarError) -> int:
    _say(stdout, handshake.fatal(error))
    return FAILED


def _complain(error: Exception, where: str = "") -> int:
    code = f"{error.code}: " if isinstance(error, SidecarError) else ""
    text = error.strerror if isinstance(error, OSError) else str(error)
    print(f"{where}{': ' if where else ''}{code}{text}", file=sys.stderr)
    return FAILED


if __name__ == "__main__":
    main()
