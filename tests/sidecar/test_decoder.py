"""A decoder process does one picture's work, within bounds, and its end is nobody else's."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sidecar import decoder, decoder_main, decoder_start, heatmap, images
from sidecar.decoder import Decoders, Picture
from sidecar.decoder_main import Confinement, Desk
from sidecar.errors import (
    ImageTooCostly,
    ImageTooLarge,
    ImageUnreadable,
    Internal,
    RequestCancelled,
    ResourcesExhausted,
    SidecarError,
)
from sidecar.job import HeatmapOptions, ImageFile, Pixels
from tests import waiting
from tests.attack import hostile_images
from tests.client import ROOT
from tests.sidecar.test_images import LIMIT, picture, saved

PATIENCE = 60.0
SLOW = ImageFile(hostile_images.jpeg_fill(0.5))  # costs far more than a picture may
SCORES = np.linspace(0, 1, 256, dtype=np.float32)
NORMS = (1.0, 2.0)

posix = pytest.mark.skipif(os.name != "posix", reason="signals")
linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc, and limits of Linux")


STARTERS = [decoder_start.Spawning, *[decoder_start.Forking] * (sys.platform == "linux")]

until = partial(waiting.until, patience=PATIENCE)


@pytest.fixture(scope="module", params=STARTERS)
def decoders(request: pytest.FixtureRequest) -> Iterator[Decoders]:
    """Started as on each system."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoder_start, "starter", request.param)
        with contextlib.closing(Decoders()) as started:
            started.wait_until_ready()
            yield started


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as pool:
        yield pool


def file(number: int = 0, height: int = 40, width: int = 60) -> ImageFile:
    """A picture of its own for each `number`."""
    noise = np.random.default_rng(number).integers(0, 256, (40, 60, 3), np.uint8)
    return ImageFile(saved(Image.fromarray(np.resize(noise, (height, width, 3)))))


def prepare(prepared: Picture, source: ImageFile | Pixels, keep: bool = False) -> np.ndarray:
    return prepared.prepare(source, (28, 42), "bilinear", keep)


def expected(source: ImageFile) -> np.ndarray:
    return images.resize(images.decode(source.data, LIMIT), 28, 42, "bilinear")


def is_alive(pid: int) -> bool:
    """On Linux; elsewhere False."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"  # gone, but not yet waited for


def works_on(decoders: Decoders, prepared: Picture) -> int:
    """The pid of the process that `prepared` occupies, once it does and the process is ready: one
    that ends before then failed to start, whatever it was asked.
    """
    until(lambda: prepared._process and prepared._process.ready)
    with decoders.changed:
        assert prepared._process is not None
        return prepared._process.pid


def start(
    threads: ThreadPoolExecutor, decoders: Decoders, source: ImageFile
) -> tuple[Picture, Future[np.ndarray], int]:
    """A picture that is being prepared in another thread, and the process that does it."""
    prepared = Picture(decoders, LIMIT)
    result = threads.submit(prepare, prepared, source)
    return prepared, result, works_on(decoders, prepared)


def test_a_file_and_rgb_come_back_as_they_do_without_a_process(decoders: Decoders) -> None:
    for source in (file(), Pixels(picture(40, 60))):
        with Picture(decoders, LIMIT) as prepared:
            pixels = prepare(prepared, source)
        rgb = source.rgb if isinstance(source, Pixels) else images.decode(source.data, LIMIT)
        np.testing.assert_array_equal(pixels, images.resize(rgb, 28, 42, "bilinear"))


def test_a_heatmap_is_drawn_over_the_picture_that_was_prepared(decoders: Decoders) -> None:
    options = HeatmapOptions(colormap="viridis", legend=False)
    with Picture(decoders, LIMIT) as prepared:
        prepare(prepared, file(), keep=True)
        png = prepared.draw(SCORES, (28, 42), options, NORMS, flat=False)
    assert png == heatmap.draw(SCORES, images.decode(file().data, LIMIT), options, NORMS)


def test_a_heatmap_without_a_picture_is_drawn_over_white(decoders: Decoders) -> None:
    with Picture(decoders, LIMIT) as nothing:
        png = nothing.draw(SCORES, (28, 42), HeatmapOptions(), NORMS, flat=False)
    white = np.full((28, 42, 3), 255, np.uint8)
    assert png == heatmap.draw(SCORES, white, HeatmapOptions(), NORMS)


def test_more_pictures_than_processes_are_each_drawn_over_their_own(decoders: Decoders) -> None:
    sources = [file(number) for number in range(5)]
    with contextlib.ExitStack() as stack:
        kept = [stack.enter_context(Picture(decoders, LIMIT)) for _ in sources]
        for prepared, source in zip(kept, sources, strict=True):
            np.testing.assert_array_equal(prepare(prepared, source, keep=True), expected(source))
        with Picture(decoders, LIMIT) as nothing:
            nothing.draw(SCORES, (28, 42), HeatmapOptions(), NORMS, flat=False)
        for prepared, source in zip(kept, sources, strict=True):
            png = prepared.draw(SCORES, (28, 42), HeatmapOptions(), NORMS, flat=False)
            over = images.decode(source.data, LIMIT)
            assert png == heatmap.draw(SCORES, over, HeatmapOptions(), NORMS)


@pytest.mark.parametrize(
    ("source", "error"),
    [
        (ImageFile(b"no image"), ImageUnreadable),
        (file(0, 400, 300), ImageTooLarge),
    ],
    ids=["unreadable", "too large"],
)
def test_a_refusal_crosses_with_its_code_and_costs_no_process(
    decoders: Decoders, source: ImageFile, error: type[SidecarError]
) -> None:
    restarts = decoders.report()["restarts"]
    with Picture(decoders, 100_000) as prepared, pytest.raises(error):
        prepare(prepared, source)
    assert decoders.report()["restarts"] == restarts


def test_cancelling_kills_the_process_and_another_takes_its_place(
    decoders: Decoders, threads: ThreadPoolExecutor
) -> None:
    prepared, result, pid = start(threads, decoders, SLOW)
    prepared.cancel()
    with pytest.raises(RequestCancelled):
        result.result(PATIENCE)
    with Picture(decoders, LIMIT) as following:
        np.testing.assert_array_equal(prepare(following, file()), expected(file()))
    until(lambda: pid not in decoders.pids() and len(decoders.pids()) == decoder.PROCESSES)
    until(lambda: not is_alive(pid))


def test_cancelling_ends_the_picture_in_every_state(decoders: Decoders) -> None:
    with Picture(decoders, LIMIT) as untouched:
        untouched.cancel()
        with pytest.raises(RequestCancelled):
            prepare(untouched, file())
    with Picture(decoders, LIMIT) as kept:
        prepare(kept, file(), keep=True)
        kept.cancel()
        with pytest.raises(RequestCancelled):
            kept.draw(SCORES, (28, 42), HeatmapOptions(), NORMS, flat=False)


def test_a_picture_that_waits_for_a_process_is_cancelled_at_once(
    decoders: Decoders, threads: ThreadPoolExecutor
) -> None:
    busy = [start(threads, decoders, SLOW) for _ in range(decoder.PROCESSES)]
    waiting = Picture(decoders, LIMIT)
    result = threads.submit(prepare, waiting, file())
    waiting.cancel()
    with pytest.raises(RequestCancelled):
        result.result(PATIENCE)
    for prepared, _, _ in busy:
        prepared.cancel()


@posix
@pytest.mark.parametrize(
    ("number", "error"),
    [(signal.SIGSEGV, ImageUnreadable), (signal.SIGKILL, ResourcesExhausted)],
    ids=["a crash", "the system out of memory"],
)
def test_only_the_picture_that_a_process_dies_of_fails(
    decoders: Decoders, threads: ThreadPoolExecutor, number: int, error: type[SidecarError]
) -> None:
    with Picture(decoders, LIMIT) as first:
        prepare(first, file())  # the processes are started
    with Picture(decoders, LIMIT) as other:
        prepare(other, file(1), keep=True)
        _, result, pid = start(threads, decoders, SLOW)
        os.kill(pid, number)
        with pytest.raises(error):
            result.result(PATIENCE)
        png = other.draw(SCORES, (28, 42), HeatmapOptions(), NORMS, flat=False)
        over = images.decode(file(1).data, LIMIT)
        assert png == heatmap.draw(SCORES, over, HeatmapOptions(), NORMS)


@posix
def test_a_picture_is_drawn_though_the_process_that_kept_it_has_ended(decoders: Decoders) -> None:
    with Picture(decoders, LIMIT) as prepared:
        prepare(prepared, file(), keep=True)
        pid = works_on(decoders, prepared)
        os.kill(pid, signal.SIGKILL)
        until(lambda: pid not in decoders.pids())
        png = prepared.draw(SCORES, (28, 42), HeatmapOptions(), NORMS, flat=False)
    assert png == heatmap.draw(SCORES, images.decode(file().data, LIMIT), HeatmapOptions(), NORMS)


@linux
def test_pictures_are_prepared_though_the_template_has_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(decoder, "RETRY_S", 0.01)
    with contextlib.closing(Decoders()) as decoders:
        decoders.wait_until_ready()
        pids = decoders.pids()
        stat = Path(f"/proc/{pids[0]}/stat").read_text("ascii")
        os.kill(int(stat.rpartition(")")[2].split()[1]), signal.SIGKILL)
        until(lambda: not {*pids} & {*decoders.pids()})
        with Picture(decoders, LIMIT) as prepared:
            np.testing.assert_array_equal(prepare(prepared, file()), expected(file()))


@posix
def test_signals_to_the_whole_group_do_not_end_a_decoder(decoders: Decoders) -> None:
    with Picture(decoders, LIMIT) as prepared:
        prepare(prepared, file(), keep=True)
        pid = works_on(decoders, prepared)
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(pid, number)
        prepared.draw(SCORES, (28, 42), HeatmapOptions(), NORMS, flat=False)
    assert pid in decoders.pids()


@pytest.mark.parametrize(
    ("limit", "source", "what"),
    [
        pytest.param("SECONDS = 1", SLOW, "time", marks=posix),
        pytest.param(
            "BYTES, decoder_main.BYTES_PER_PIXEL = 2**24, 1",
            file(0, 3000, 3000),
            "memory",
            marks=linux,
        ),
    ],
)
def test_a_picture_that_costs_more_than_it_may_is_refused(
    monkeypatch: pytest.MonkeyPatch, limit: str, source: ImageFile, what: str
) -> None:
    code = f"from sidecar import decoder_main\ndecoder_main.{limit}\ndecoder_main.main()"
    monkeypatch.setattr(decoder_start, "command", lambda: [sys.executable, "-c", code])
    with contextlib.closing(Decoders()) as decoders:
        with Picture(decoders, LIMIT) as prepared, pytest.raises(ImageTooCostly, match=what):
            prepare(prepared, source)
        with Picture(decoders, LIMIT) as following:
            np.testing.assert_array_equal(prepare(following, file()), expected(file()))


REQUEST = {"op": "decode", "max_pixels": LIMIT, "resolution": [28, 42], "resample": "bilinear"}


@pytest.mark.parametrize(
    ("failure", "enough", "error"),
    [
        (MemoryError(), True, ImageTooCostly),
        (MemoryError(), False, ResourcesExhausted),
        (OSError("a codec's"), True, ImageUnreadable),
        (OSError("a codec's"), False, ResourcesExhausted),
    ],
    ids=["the picture's", "the system's", "damage", "a codec's, on a system that has too little"],
)
def test_out_of_memory_is_told_apart_from_damage(
    monkeypatch: pytest.MonkeyPatch, failure: Exception, enough: bool, error: type[SidecarError]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise failure

    monkeypatch.setattr(Image, "open", fail)
    monkeypatch.setattr(Confinement, "allow", lambda *_: enough)
    header, _ = Desk(Confinement(None, 0)).answer(REQUEST, bytearray(file().data))
    assert type(decoder._error(header)) is error


def test_a_bug_is_told_without_what_the_file_says(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyError("secret")

    monkeypatch.setattr(images, "resize", fail)
    monkeypatch.setattr(Confinement, "allow", lambda *_: True)
    header, _ = Desk(Confinement(None, 0)).answer({**REQUEST, "keep": None}, bytearray(file().data))
    assert header["message"].startswith("KeyError at ")
    assert "secret" not in str(header)
    assert type(decoder._error(header)) is Internal


def test_a_process_is_given_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "s3cr3t")
    assert "s3cr3t" not in str(decoder_start.environment())
    assert set(decoder_start.environment()) <= {
        *decoder_start.ENVIRONMENT,
        "OPENBLAS_NUM_THREADS",
        "PYTHONPATH",
    }


@linux
def test_a_process_can_open_nothing_and_keeps_no_core(decoders: Decoders) -> None:
    with Picture(decoders, LIMIT) as prepared:
        prepare(prepared, file(), keep=True)
        process = Path(f"/proc/{works_on(decoders, prepared)}")
        limits = (process / "limits").read_text("ascii")
        with contextlib.suppress(PermissionError):  # only root may look
            assert len(list((process / "fd").iterdir())) == 5  # its two pipes, and nothing thrice
    for name in ("core file size", "open files", "file size", "processes"):
        [line] = [line for line in limits.splitlines() if line.startswith(f"Max {name} ")]
        assert line.removeprefix(f"Max {name}").split()[:2] == ["0", "0"]
    [line] = [line for line in limits.splitlines() if line.startswith("Max address space")]
    allowed = int(line.removeprefix("Max address space").split()[0])
    pixels = 40 * 60
    assert allowed < 2**30 + decoder_main.BYTES_PER_PIXEL * pixels


PARENT = """
import sys, threading
from sidecar.decoder import Decoders, Picture
from tests.sidecar.test_decoder import LIMIT, SLOW, prepare, works_on
decoders = Decoders()
picture = Picture(decoders, LIMIT)
threading.Thread(target=prepare, args=(picture, SLOW), daemon=True).start()
works_on(decoders, picture)
while len(decoders.pids()) < 2:
    pass
print(*decoders.pids(), flush=True)
threading.Event().wait()
"""


@linux
def test_processes_end_with_their_parent_even_while_they_decode() -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    with parent.stdout:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
    parent.kill()
    parent.wait()
    assert len(pids) == decoder.PROCESSES
    until(lambda: not any(map(is_alive, pids)))


def test_a_process_that_cannot_be_started_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, threads: ThreadPoolExecutor
) -> None:
    command, tries = decoder_start.command, threading.Event()

    def missing() -> list[str]:
        tries.set()
        return ["/does/not/exist"]

    monkeypatch.setattr(decoder, "RETRY_S", 0.01)
    monkeypatch.setattr(decoder_start, "command", missing)
    with contextlib.closing(Decoders()) as decoders:
        result = threads.submit(prepare, Picture(decoders, LIMIT), file())
        assert tries.wait(PATIENCE)
        monkeypatch.setattr(decoder_start, "command", command)
        np.testing.assert_array_equal(result.result(PATIENCE), expected(file()))


def test_a_process_that_ends_at_its_start_is_told_as_a_fault_of_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(decoder, "START_S", 0.01)
    monkeypatch.setattr(decoder_start, "command", lambda: [sys.executable, "-c", "pass"])
    with contextlib.closing(Decoders()) as decoders, pytest.raises(Internal):
        prepare(Picture(decoders, LIMIT), file())


def test_closing_ends_every_process() -> None:
    decoders = Decoders()
    until(lambda: len(decoders.pids()) == decoder.PROCESSES)
    pids = decoders.pids()
    decoders.close()
    assert decoders.pids() == []
    until(lambda: not any(map(is_alive, pids)))
