"""What a decoder process runs, called in the tests' own process, which sets no limits on itself."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
from PIL import Image

from sidecar import decoder_main, hardening, heatmap, images
from sidecar.decoder_main import Confinement, Desk
from sidecar.decoder_wire import (
    CONTROL,
    ENDED,
    FORK,
    KILL,
    LENGTHS,
    MEMORY,
    READY,
    STARTED,
    SYSTEM_MEMORY,
    read,
    write,
)
from sidecar.job import HeatmapOptions
from tests.sidecar.test_images import LIMIT, picture, saved

posix = pytest.mark.skipif(os.name != "posix", reason="limits and signals of POSIX")
linux = pytest.mark.skipif(sys.platform != "linux", reason="the template is Linux's")

PATIENCE = 60.0
RGB = picture(40, 60)
FILE = saved(Image.fromarray(RGB))
DECODE: dict[str, Any] = {
    "op": "decode",
    "max_pixels": LIMIT,
    "resolution": [28, 42],
    "resample": "bilinear",
    "keep": None,
}
RAW: dict[str, Any] = {**DECODE, "op": "resize", "shape": [40, 60]}
SCORES = np.linspace(0, 1, 256, dtype=np.float32)
DRAW: dict[str, Any] = {
    "op": "draw",
    "over": None,
    "size": [28, 42],
    "heatmap": {"colormap": "viridis"},
    "norms": [1.0, 2.0],
    "flat": False,
}


class Gone(Exception):
    """The process would have ended here."""


@pytest.fixture
def stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """What would end this process raises, and no limit is set."""

    def gone(code: int) -> None:
        raise Gone(code)

    monkeypatch.setattr(os, "_exit", gone)
    monkeypatch.setattr(decoder_main, "confine", lambda: Confinement(None, 0))
    monkeypatch.setattr(Confinement, "allow", lambda *_: True)


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setattr(Confinement, "allow", lambda *_: True)
    return Desk(Confinement(None, 0))


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> dict[int, tuple[int, int]]:
    """What was asked of the system, which is not told."""
    import resource

    asked: dict[int, tuple[int, int]] = {}
    monkeypatch.setattr(resource, "setrlimit", asked.__setitem__)
    return asked


def resized() -> np.ndarray:
    return images.resize(RGB, 28, 42, "bilinear")


@pytest.mark.parametrize(
    ("request_", "payload"),
    [pytest.param(DECODE, FILE, id="a file"), pytest.param(RAW, RGB.tobytes(), id="RGB")],
)
def test_a_picture_is_resized(desk: Desk, request_: dict[str, Any], payload: bytes) -> None:
    header, pixels = desk.answer(request_, bytearray(payload))
    assert header == {}
    assert bytes(pixels) == resized().tobytes()


def test_a_kept_picture_is_drawn_over_once(desk: Desk) -> None:
    desk.answer({**DECODE, "keep": 7}, bytearray(FILE))
    desk.expect(SCORES.nbytes)
    header, png = desk.answer({**DRAW, "over": 7}, bytearray(SCORES.tobytes()))
    options = HeatmapOptions.parse(DRAW["heatmap"])
    assert header == {}
    assert png == heatmap.draw(SCORES, RGB, options, (1.0, 2.0))
    header, _ = desk.answer({**DRAW, "over": 7}, bytearray(SCORES.tobytes()))
    assert header["error"] == "bug"
    assert header["message"].startswith("LookupError at ")


def test_another_picture_s_number_is_not_drawn_over(desk: Desk) -> None:
    desk.answer({**DECODE, "keep": 7}, bytearray(FILE))
    header, png = desk.answer({**DRAW, "over": 8}, bytearray(SCORES.tobytes()))
    assert (header["error"], png) == ("bug", b"")


def test_without_a_picture_white_is_drawn_over(desk: Desk) -> None:
    header, png = desk.answer(DRAW, bytearray(SCORES.tobytes()))
    white = np.full((28, 42, 3), 255, np.uint8)
    assert header == {}
    assert png == heatmap.draw(SCORES, white, HeatmapOptions.parse(DRAW["heatmap"]), (1.0, 2.0))


def test_what_is_no_image_has_its_code_and_a_message(desk: Desk) -> None:
    header, payload = desk.answer(DECODE, bytearray(b"no image"))
    assert header["error"] == "image.unreadable"
    assert header["message"]
    assert payload == b""


@pytest.mark.parametrize(("whole", "code"), [(True, MEMORY), (False, SYSTEM_MEMORY)])
def test_who_lacks_memory_is_told(
    monkeypatch: pytest.MonkeyPatch, desk: Desk, whole: bool, code: str
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Confinement, "allow", lambda *_: whole)
    monkeypatch.setattr(images, "resize", fail)
    assert desk.answer(DECODE, bytearray(FILE)) == ({"error": code}, b"")


def test_a_codec_that_fails_where_the_system_lacks_memory_is_not_the_file_s_fault(
    monkeypatch: pytest.MonkeyPatch, desk: Desk
) -> None:
    monkeypatch.setattr(Confinement, "allow", lambda *_: False)
    assert desk.answer(DECODE, bytearray(b"no image")) == ({"error": SYSTEM_MEMORY}, b"")


@posix
def test_a_picture_s_allowance_grows_with_its_pixels_and_its_file(
    limits: dict[int, tuple[int, int]],
) -> None:
    import resource

    assert Confinement(2**30, 2**40).allow(1000, 50)
    wanted = 2**30 + decoder_main.BYTES + 1000 * decoder_main.BYTES_PER_PIXEL + 150
    assert limits.pop(resource.RLIMIT_AS) == (wanted, 2**40)
    few = limits[resource.RLIMIT_CPU][0]
    Confinement(2**30, 2**40).allow(1_000_000_000, 50)
    assert limits[resource.RLIMIT_CPU][0] >= few + 1000 * decoder_main.SECONDS_PER_MEGAPIXEL - 1


@posix
def test_an_allowance_beyond_what_the_system_grants_is_cut_and_told(
    monkeypatch: pytest.MonkeyPatch, limits: dict[int, tuple[int, int]]
) -> None:
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda _: (1, 1))
    assert not Confinement(2**30, 2**30 + 1).allow(1000, 50)
    assert limits == {
        resource.RLIMIT_CPU: (1, 1),
        resource.RLIMIT_AS: (2**30 + 1, 2**30 + 1),
    }


@posix
def test_memory_that_cannot_be_limited_is_not(limits: dict[int, tuple[int, int]]) -> None:
    import resource

    assert Confinement(None, 0).allow(1000, 50)
    assert set(limits) == {resource.RLIMIT_CPU}


@linux
def test_files_and_processes_are_given_up_for_good(
    monkeypatch: pytest.MonkeyPatch, limits: dict[int, tuple[int, int]]
) -> None:
    import resource

    written: dict[str, str] = {}
    monkeypatch.setattr(Path, "write_text", lambda path, text: written.update({str(path): text}))
    monkeypatch.setattr(resource, "getrlimit", lambda _: (-1, resource.RLIM_INFINITY))
    confinement = decoder_main.confine()
    assert limits == dict.fromkeys(
        (resource.RLIMIT_FSIZE, resource.RLIMIT_NPROC, resource.RLIMIT_NOFILE), (0, 0)
    )
    assert written == {"/proc/self/oom_score_adj": "1000"}
    assert confinement.most == sys.maxsize
    assert confinement.address_space is not None
    assert confinement.address_space > 2**20


@contextlib.contextmanager
def decoding() -> Iterator[tuple[BinaryIO, BinaryIO, threading.Thread]]:
    """The loop in a thread: what it reads from, what it writes to."""
    requests, stdin = os.pipe()
    stdout, replies = os.pipe()

    def decode() -> None:
        with contextlib.suppress(Gone):
            decoder_main.decode(requests, replies)

    loop = threading.Thread(target=decode, daemon=True)
    with open(stdin, "wb", buffering=0) as to, open(stdout, "rb", buffering=0) as back:  # noqa: PTH123
        loop.start()
        yield to, back, loop
    loop.join(PATIENCE)
    assert not loop.is_alive()


def reply(stream: BinaryIO) -> tuple[dict[str, Any], bytes]:
    header, payload = LENGTHS.unpack(read(stream, LENGTHS.size))
    return json.loads(read(stream, header)), bytes(read(stream, payload))


@pytest.mark.usefixtures("stays")
def test_requests_are_answered_in_turn_until_the_parent_has_gone() -> None:
    with decoding() as (to, back, loop):
        assert reply(back) == ({"ready": True}, b"")
        for request, payload in ((DECODE, b"no image"), (DECODE, FILE)):
            write(to, request, payload)
        assert reply(back)[0]["error"] == "image.unreadable"
        assert reply(back) == ({}, resized().tobytes())
        assert loop.is_alive()


@pytest.mark.usefixtures("stays")
def test_a_payload_without_room_is_told_and_ends_the_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(stream: BinaryIO, length: int) -> bytearray:
        if length == len(FILE):
            raise MemoryError
        return read(stream, length)

    monkeypatch.setattr(decoder_main, "read", full)
    with decoding() as (to, back, loop):
        reply(back)
        with contextlib.suppress(
            BrokenPipeError
        ):  # the process may end before it has been sent everything
            write(to, DECODE, FILE)
        assert reply(back) == ({"error": SYSTEM_MEMORY}, b"")
        loop.join(PATIENCE)
        assert not loop.is_alive()


@pytest.fixture
def signals() -> Iterator[None]:
    """Ours, put back."""
    kinds = (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM)
    before = {kind: signal.getsignal(kind) for kind in kinds}
    yield
    signal.set_wakeup_fd(-1)
    for kind, handler in before.items():
        signal.signal(kind, handler)


@linux
@pytest.mark.usefixtures("stays", "signals")
def test_the_template_forks_kills_and_tells_until_the_sidecar_has_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    children: list[subprocess.Popen[bytes]] = []
    waitpid = os.waitpid

    def fork() -> int:
        if children:
            raise BlockingIOError  # more processes than this user may have
        children.append(subprocess.Popen(["sleep", "1000"]))
        return children[0].pid

    def gone(code: int) -> None:
        signal.set_wakeup_fd(-1)  # before the socket that would be written to is closed
        raise Gone(code)

    monkeypatch.setattr(os, "_exit", gone)
    monkeypatch.setattr(os, "fork", fork)
    # This process has other children, which are other tests' to wait for.
    monkeypatch.setattr(os, "waitpid", lambda _, how: waitpid(children[0].pid, how))
    monkeypatch.setattr(decoder_main, "_end_with_parent", lambda: None)
    monkeypatch.setattr("gc.freeze", lambda: None)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(PATIENCE)
    told: list[tuple[bytes, int, int]] = []

    def ask(*kinds: tuple[bytes, int]) -> None:
        for kind, pid in kinds:
            if kind == FORK:
                with contextlib.ExitStack() as opened:
                    ends = os.pipe()
                    for end in ends:
                        opened.callback(os.close, end)
                    socket.send_fds(ours, [CONTROL.pack(FORK, 0, 0)], list(ends))
            else:
                ours.send(CONTROL.pack(kind, pid, 0))

    def hear() -> None:
        told.append(CONTROL.unpack(ours.recv(CONTROL.size)))

    def sidecar() -> None:
        with ours:  # and the template ends when we have gone
            hear()
            ask((FORK, 0))
            hear()
            ask((FORK, 0))
            hear()
            ask((KILL, os.getpid()), (KILL, told[1][1]))  # ours is not the template's to kill
            hear()

    thread = threading.Thread(target=sidecar)
    thread.start()
    with pytest.raises(Gone):
        decoder_main.serve_forks(theirs)
    thread.join(PATIENCE)
    theirs.close()
    children[0].returncode = -signal.SIGKILL  # waited for above
    pid = children[0].pid
    assert told == [
        (READY, 0, 0),
        (STARTED, pid, 0),
        (STARTED, 0, 0),  # none could be had
        (ENDED, pid, -signal.SIGKILL),
    ]


@linux
@pytest.mark.usefixtures("stays", "signals")
@pytest.mark.parametrize("orphan", [False, True])
def test_a_forked_process_decodes_unless_its_template_has_ended(
    monkeypatch: pytest.MonkeyPatch, orphan: bool
) -> None:
    decoded: list[tuple[int, ...]] = []

    def decode(*descriptors: int) -> None:
        decoded.append(descriptors)
        raise Gone(0)

    monkeypatch.setattr(os, "fork", lambda: 0)
    monkeypatch.setattr(os, "getppid", lambda: os.getpid() + orphan)
    monkeypatch.setattr(decoder_main, "_end_with_parent", lambda: None)
    monkeypatch.setattr(decoder_main, "decode", decode)
    control, other = socket.socketpair()
    with other, pytest.raises(Gone):
        decoder_main._fork([100, 101], (control,))
    assert control.fileno() == -1, "a decoder could speak as the template"
    assert decoded == ([] if orphan else [(100, 101)])


@posix
@pytest.mark.usefixtures("signals")
@pytest.mark.parametrize("template", [False, True])
def test_the_first_three_descriptors_lead_nowhere_and_what_stdin_is_decides(
    monkeypatch: pytest.MonkeyPatch, template: bool
) -> None:
    one, other = socket.socketpair()
    requests, replies = os.pipe()
    nowhere: dict[int, bool] = {}
    served: list[str] = []

    def serves(name: str) -> Callable[..., None]:
        def serve(*_: object) -> None:
            served.append(name)
            raise Gone(0)

        return serve

    dup, stdin = os.dup, one.fileno() if template else requests
    monkeypatch.setattr(os, "dup", lambda number: dup(replies if number else stdin))
    null = os.stat(os.devnull).st_rdev  # noqa: PTH116
    monkeypatch.setattr(
        os, "dup2", lambda old, new: nowhere.update({new: os.fstat(old).st_rdev == null})
    )
    monkeypatch.setattr(hardening, "forbid_core_dumps", lambda: None)
    monkeypatch.setattr(decoder_main, "decode", serves("decode"))
    monkeypatch.setattr(decoder_main, "serve_forks", serves("serve_forks"))
    with one, other, pytest.raises(Gone):
        decoder_main.main()
    for end in (requests, replies):
        os.close(end)
    assert served == ["serve_forks" if template else "decode"]
    assert nowhere == dict.fromkeys(range(3), True)
    assert signal.getsignal(signal.SIGTERM) == signal.getsignal(signal.SIGINT) == signal.SIG_IGN
