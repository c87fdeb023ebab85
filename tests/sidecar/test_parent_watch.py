"""When the watch on the parent ends the process, and when it does not: within this process, with
`os._exit` out of the way. tests/sidecar/test_life.py kills real parents.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NoReturn

import pytest

from sidecar import parent_watch
from tests import waiting

pytestmark = pytest.mark.skipif(os.name != "posix", reason="Windows has no parent to look at")

PATIENCE = 120.0

until = partial(waiting.until, patience=PATIENCE)


class Exited(BaseException):
    """In place of the end of the process."""


def threads(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == name]


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The exit codes, in order; the thread that wanted to exit ends."""
    codes: list[int] = []

    def leave(code: int) -> NoReturn:
        codes.append(code)
        raise Exited

    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(parent_watch, "_started", threading.Event())
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    yield codes
    parent_watch._started.set()
    for thread in [*threads("parent_poll"), *threads("parent_watch")]:
        thread.join(PATIENCE)  # one that outlived this test would end pytest itself


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, Callable[[], None]]]:
    """The parent's end of stdin, and what closes it."""
    read, write = os.pipe()
    monkeypatch.setattr(parent_watch, "STDIN", read)
    ends = {read, write}

    def close() -> None:
        if write in ends:
            ends.remove(write)
            os.close(write)

    yield write, close
    for end in ends:
        os.close(end)


def test_the_end_of_stdin_ends_the_process_after_the_last_words(
    exits: list[int], stdin: tuple[int, Callable[[], None]]
) -> None:
    write, close = stdin
    words: list[str] = []
    parent_watch.watch_stdin(before_exit=lambda: words.append("last"))
    [watching] = threads("parent_watch")
    assert watching.daemon
    for _ in range(3):  # whatever else a parent writes means nothing
        os.write(write, b"x" * 5000)
    os.write(write, b"another line\n")
    assert parent_watch._started.is_set()
    assert (exits, words) == ([], [])
    close()
    watching.join(PATIENCE)
    assert (exits, words) == ([0], ["last"])


def test_a_stdin_that_cannot_be_read_ends_it_too(
    exits: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "read", fail)
    with pytest.raises(Exited):
        parent_watch._wait(lambda: None)
    assert exits == [0]


def test_it_reads_on_until_there_is_nothing_more(
    exits: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[int, int]] = []

    def read(descriptor: int, size: int) -> bytes:
        calls.append((descriptor, size))
        return b"" if len(calls) == 3 else b"x"

    monkeypatch.setattr(os, "read", read)
    with pytest.raises(Exited):
        parent_watch._wait(lambda: None)
    assert [descriptor for descriptor, _ in calls] == [parent_watch.STDIN] * 3
    assert all(size > 0 for _, size in calls)


def test_a_parent_that_changes_while_nothing_reads_stdin_ends_it(
    exits: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    parents = iter([41, 41, 41, 1])
    monkeypatch.setattr(os, "getppid", lambda: next(parents))
    monkeypatch.setattr(parent_watch, "POLL_S", 0.001)
    parent_watch.watch_start()
    until(lambda: exits)
    assert exits == [0]
    assert next(parents, None) is None  # not before it changed


def test_it_stops_looking_once_stdin_is_watched(
    exits: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getppid", lambda: 41)
    monkeypatch.setattr(parent_watch, "POLL_S", 0.001)
    parent_watch.watch_start()
    [polling] = threads("parent_poll")
    assert polling.daemon
    parent_watch._started.set()
    polling.join(PATIENCE)
    assert not polling.is_alive()
    assert exits == []


def test_whether_stdin_is_held_is_asked_without_waiting_and_without_reading(
    stdin: tuple[int, Callable[[], None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    class Poll:
        def register(self, *what: int) -> None:
            asked.append(what)

        def poll(self, *timeout: int) -> list[tuple[int, int]]:
            asked.append(timeout)
            return [(parent_watch.STDIN, event)]

    event = select.POLLIN
    monkeypatch.setattr(select, "poll", Poll)
    assert not parent_watch._hung_up()
    event |= select.POLLHUP
    assert parent_watch._hung_up()
    assert asked == [(parent_watch.STDIN, 0), (0,)] * 2


@pytest.mark.parametrize(("gone", "expected"), [(True, [0]), (False, [])])
def test_a_child_of_init_ends_at_once_if_nobody_holds_its_stdin(
    exits: list[int],
    stdin: tuple[int, Callable[[], None]],
    monkeypatch: pytest.MonkeyPatch,
    gone: bool,
    expected: list[int],
) -> None:
    monkeypatch.setattr(os, "getppid", lambda: 1)
    if gone:
        stdin[1]()
        with pytest.raises(Exited):
            parent_watch.watch_start()
    else:
        os.write(stdin[0], b"a line that must not be eaten\n")
        parent_watch.watch_start()
        assert os.read(parent_watch.STDIN, 100) == b"a line that must not be eaten\n"
    assert exits == expected


def test_another_parent_than_init_is_not_asked_about_stdin(
    exits: list[int], stdin: tuple[int, Callable[[], None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getppid", lambda: 2)
    stdin[1]()  # a line may still lie in the pipe
    parent_watch.watch_start()
    assert exits == []
