"""The command line: settings, manifest, session, encoder, service, transport; and exit codes."""

import sys

from sidecar import parent_watch

if __name__ == "__main__" and sys.argv[1:2] == ["serve"]:
    parent_watch.watch_start()  # before the imports below, which are most of a start

import os

# numpy's matrices are small here: its threads would only spin, beside those of the model.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import signal
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import BinaryIO, NoReturn

from sidecar import (
    encoder,
    handshake,
    hardening,
    library,
    log,
    malloc,
    manifest,
    priority,
    stdio,
    terminal,
)
from sidecar.console import FAILED, complain, say
from sidecar.errors import Internal, SidecarError, exhausted
from sidecar.server import LINGER_MS, Server
from sidecar.service import Deliver, Service, failure
from sidecar.settings import Settings, parse
from sidecar.shutdown import Shutdown

END_S = 0.5  # to answer what is pending, where nobody may read the answers


def main(argv: Sequence[str] | None = None) -> NoReturn:
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed by whoever started us; else the next file opened would take it
            os.open(os.devnull, os.O_RDWR)
    settings = parse(sys.argv[1:] if argv is None else argv)
    hardening.forbid_core_dumps()
    hardening.allow_descriptors()
    malloc.return_large_blocks()
    # Nothing but us may write to the real stdout: a library's print would break the protocol.
    stdout = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    if settings.priority == "low":
        priority.lower()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback for a person who presses Ctrl-C
    commands = {
        "serve": serve,
        "stdio": run_stdio,
        "encode": terminal.encode,
        "verify": terminal.verify,
        "index": library.index,
        "search": library.search,
    }
    try:
        code = commands[settings.command](settings, stdout)
    except Exception as error:
        bug = Internal(f"a bug in the sidecar: {type(error).__name__}.")
        code = complain(exhausted(error) or bug)
    os._exit(code)  # a run in native code, or a reader that stalls, must not hold us up


def serve(settings: Settings, stdout: BinaryIO) -> int:
    handler = log.start()
    shutdown = Shutdown()
    try:
        request = _read_handshake(stdout)
        parent_watch.watch_stdin(before_exit=handler.flush)
        server = Server(request.client_key, settings.limits)
        service = _service(
            settings,
            server.deliver,
            on_ready=lambda: say(stdout, handshake.ready()),
            shutdown=shutdown,
        )
    except Exception as error:  # no socket, for example: the app is told, and not left to wait
        return _fatal(stdout, failure(error, "the server did not start"))
    shutdown.on_signals()
    stopped = threading.Event()

    def on_stopped(reason: SidecarError | None) -> None:
        stopped.set()
        shutdown.request(reason)

    server.start(service, on_stopped)
    say(stdout, handshake.listening(request, server.endpoint, server.public_key, os.getpid()))
    service.start()

    reason = shutdown.wait()
    if reason is not None:
        say(stdout, handshake.fatal(reason))
    service.end()
    server.stop()
    stopped.wait(LINGER_MS / 1e3 + END_S)
    handler.flush()
    return FAILED if reason is not None else 0


def run_stdio(settings: Settings, stdout: BinaryIO) -> int:
    handler = log.start()
    shutdown = Shutdown()
    replies = stdio.Replies(stdout, on_closed=shutdown.request)
    stdin = os.fdopen(os.dup(0), "rb")

    def read() -> None:
        stdio.serve(stdin, service, settings.limits.max_frame_bytes)

    # A script has no `ready` event to wait for: its input waits for us.
    reader = threading.Thread(target=read, name="stdin", daemon=True)
    try:
        service = _service(settings, replies.deliver, on_ready=reader.start, shutdown=shutdown)
    except SidecarError as error:
        return complain(error)
    shutdown.on_signals()
    service.start()

    reason = shutdown.wait()
    end = threading.Thread(target=service.end, daemon=True)  # it writes, and nobody may read
    end.start()
    end.join(END_S)
    handler.flush()
    return complain(reason) if reason is not None else 0


def _service(
    settings: Settings,
    deliver: Deliver,
    on_ready: Callable[[], None],
    shutdown: Shutdown,
) -> Service:
    described = manifest.read(settings.model)
    return Service(
        described,
        load=partial(encoder.load, described, settings),
        limits=settings.limits,
        deliver=deliver,
        on_ready=on_ready,
        on_finished=shutdown.request,
    )


def _read_handshake(stdout: BinaryIO) -> handshake.Request:
    def give_up() -> None:
        os._exit(_fatal(stdout, handshake.late()))

    # A timer, since a pipe cannot be waited for with a time limit on Windows.
    timer = threading.Timer(handshake.TIMEOUT_S, give_up)
    timer.daemon = True
    timer.start()
    line = b""
    while not line.endswith(b"\n") and len(line) <= handshake.MAX_LINE:
        byte = os.read(parent_watch.STDIN, 1)  # no more than the line: the rest is parent_watch's
        if not byte:
            break
        line += byte
    timer.cancel()
    return handshake.parse(line)


def _fatal(stdout: BinaryIO, error: SidecarError) -> int:
    say(stdout, handshake.fatal(error))
    return FAILED


if __name__ == "__main__":
    main()
