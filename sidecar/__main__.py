"""The command line: settings, manifest, session, encoder, service, transport; and exit codes."""

import sys

from sidecar import lifeline

if __name__ == "__main__" and sys.argv[1:2] == ["serve"]:
    lifeline.mind_parent()  # before the imports below, which are most of a start

import os
import signal
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import BinaryIO, NoReturn

from sidecar import handshake, log, manifest, manners, settings, stdio, terminal
from sidecar.ending import Ending
from sidecar.errors import Internal, SidecarError
from sidecar.server import LINGER_MS, Server
from sidecar.service import BUG, Deliver, Service
from sidecar.settings import Settings
from sidecar.terminal import FAILED, complain, say

END_S = 0.5  # to answer what is pending, where nobody may read the answers


def main(argv: Sequence[str] | None = None) -> NoReturn:
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed by whoever started us; else the next file opened would take it
            os.open(os.devnull, os.O_RDWR)
    chosen = settings.parse(sys.argv[1:] if argv is None else argv)
    # Nothing but us may write to the real stdout: a library's print would break the protocol.
    stdout = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    if chosen.priority == "low":
        manners.yield_to_others()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback for a person who presses Ctrl-C
    commands = {
        "serve": serve,
        "stdio": run_stdio,
        "encode": terminal.encode,
        "verify": terminal.verify,
    }
    try:
        code = commands[chosen.command](chosen, stdout)
    except Exception as error:
        code = complain(Internal(f"a bug in the sidecar: {type(error).__name__}."))
    os._exit(code)  # a run in native code, or a reader that stalls, must not hold us up


def serve(chosen: Settings, stdout: BinaryIO) -> int:
    handler = log.start()
    ending = Ending()
    try:
        offer = _read_offer(stdout)
        lifeline.watch()
        server = Server(offer.client_key, chosen.limits)
        service = _service(
            chosen, server.deliver, on_ready=lambda: say(stdout, handshake.ready()), ending=ending
        )
    except SidecarError as error:
        return _fatal(stdout, error)
    except Exception:  # no socket to be had, say: the app is told so, and not left to wait
        return _fatal(stdout, Internal(BUG))
    ending.on_signals()
    stopped = threading.Event()

    def on_stopped(failure: SidecarError | None) -> None:
        stopped.set()
        ending.come(failure)

    server.start(service, on_stopped)
    say(stdout, handshake.listening(offer, server.endpoint, server.public_key, os.getpid()))
    service.start()

    failure = ending.wait()
    if failure is not None:
        say(stdout, handshake.fatal(failure))
    service.end()
    server.stop()
    stopped.wait(LINGER_MS / 1e3 + END_S)
    handler.flush()
    return FAILED if failure is not None else 0


def run_stdio(chosen: Settings, stdout: BinaryIO) -> int:
    handler = log.start()
    ending = Ending()
    replies = stdio.Replies(stdout, on_closed=ending.come)
    stdin = os.fdopen(os.dup(0), "rb")

    def read() -> None:
        stdio.serve(stdin, service, chosen.limits.max_frame_bytes)

    # A script has no `ready` event to wait for: its input waits for us.
    reader = threading.Thread(target=read, name="stdin", daemon=True)
    try:
        service = _service(chosen, replies.deliver, on_ready=reader.start, ending=ending)
    except SidecarError as error:
        return complain(error)
    ending.on_signals()
    service.start()

    failure = ending.wait()
    end = threading.Thread(target=service.end, daemon=True)  # it writes, and nobody may read
    end.start()
    end.join(END_S)
    handler.flush()
    return complain(failure) if failure is not None else 0


def _service(
    chosen: Settings,
    deliver: Deliver,
    on_ready: Callable[[], None],
    ending: Ending,
) -> Service:
    described = manifest.read(chosen.model)
    return Service(
        described,
        load=partial(terminal.load, chosen, described),
        limits=chosen.limits,
        deliver=deliver,
        on_ready=on_ready,
        on_finished=ending.come,
    )


def _read_offer(stdout: BinaryIO) -> handshake.Offer:
    def give_up() -> None:
        os._exit(_fatal(stdout, handshake.late()))

    # A timer, since a pipe cannot be waited for with a time limit on Windows.
    timer = threading.Timer(handshake.TIMEOUT_S, give_up)
    timer.daemon = True
    timer.start()
    line = b""
    while not line.endswith(b"\n") and len(line) <= handshake.MAX_LINE:
        byte = os.read(lifeline.STDIN, 1)  # no more than the line: what follows is the lifeline's
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
