"""A reader that keeps up gets every line, one that stalls holds up nobody."""

import contextlib
import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar import log


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        with contextlib.suppress(OSError):
            os.close(end)


def record(text: str, **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("sidecar", logging.INFO, "", 0, text, None, None)
    made.__dict__.update(extra)
    return made


def read_all(pipe: tuple[int, int], handler: log.StderrHandler) -> list[int]:
    """The requests of all lines, once nothing more is to be written."""
    lines: list[bytes] = []

    def read() -> None:
        with os.fdopen(os.dup(pipe[0]), "rb") as stream:
            lines.extend(stream)

    reader = threading.Thread(target=read)
    reader.start()
    handler.flush()
    os.close(pipe[1])
    reader.join()
    return [json.loads(line)["request"] for line in lines]


def test_flush_waits_for_every_line_while_the_reader_reads(pipe: tuple[int, int]) -> None:
    handler = log.StderrHandler(pipe[1])
    for number in range(900):
        handler.emit(record("x" * 500, request=number))
    assert read_all(pipe, handler) == list(range(900))


def test_flush_waits_for_a_writer_that_gets_no_time(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine with much else to do, a line may come long after `flush` began."""
    write = os.write

    def late(descriptor: int, data: bytes) -> int:
        time.sleep(2 * log.STALLED_S)
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", late)
    handler = log.StderrHandler(pipe[1])
    handler.emit(record("late"))
    handler.flush()
    os.set_blocking(pipe[0], False)
    assert json.loads(os.read(pipe[0], 4096))["message"] == "late"


def test_flush_gives_up_on_a_reader_that_stalls(pipe: tuple[int, int]) -> None:
    os.set_blocking(pipe[1], False)
    try:
        while os.write(pipe[1], bytes(4096)):
            pass
    except BlockingIOError:
        os.set_blocking(pipe[1], True)
    handler = log.StderrHandler(pipe[1])
    handler.emit(record("never"))
    done = threading.Thread(target=handler.flush)
    done.start()
    done.join(30)
    assert not done.is_alive()
    os.close(pipe[0])  # ends the writer


def test_lines_beyond_the_backlog_are_dropped_and_the_others_stay_in_order(
    pipe: tuple[int, int],
) -> None:
    handler = log.StderrHandler(pipe[1])
    for number in range(4 * log.BACKLOG):
        handler.emit(record("x" * 200, request=number))  # nobody reads, and nothing waits
    lines = read_all(pipe, handler)
    assert log.BACKLOG <= len(lines) < 4 * log.BACKLOG
    assert lines == sorted(lines)


def test_an_exception_is_told_by_its_type_and_place_and_not_in_its_words(
    pipe: tuple[int, int],
) -> None:
    handler = log.StderrHandler(pipe[1])
    try:
        Path("/home/patient-4711/x").read_bytes()
    except OSError as error:
        what = record("failed")
        what.exc_info = (type(error), error, error.__traceback__)
    handler.emit(what)
    handler.flush()
    line = json.loads(os.read(pipe[0], 4096))
    assert line["error"] == "FileNotFoundError"
    assert line["at"][0].startswith("test_an_exception_is_told")
    assert "4711" not in str(line)
