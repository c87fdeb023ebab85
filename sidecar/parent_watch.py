"""Ends this process when its parent is gone: the parent holds our stdin, and end of file says so.

A pipe tells of a parent's death by any cause, on every system, within milliseconds. Polling for a
new parent id takes longer; Linux's parent-death signal fires when the thread that spawned us ends,
which kills the sidecars of healthy apps.
"""

import os
import select
import threading
from collections.abc import Callable

STDIN = 0
POLL_S = 0.1
INIT = 1
ORPHANED = 0  # nobody is left to read an exit status


_started = threading.Event()


def watch_start() -> None:
    """Until `watch_stdin`, exit when the parent is another one: a start from a cold disk takes
    seconds, and nothing reads stdin yet. Windows has no such sign, and waits for the start to end.
    """
    if os.name == "posix":
        # Init, where it died before we could look; or an app that is a container's first process.
        parent = os.getppid()
        if parent == INIT and _hung_up():
            os._exit(ORPHANED)
        arguments = (parent,)
        threading.Thread(target=_poll, args=arguments, name="parent_poll", daemon=True).start()


def watch_stdin(before_exit: Callable[[], None]) -> None:
    """From now on, exit at end of file on stdin, whatever the process is doing; `before_exit` must
    take no more than a moment. Import native modules first: on Windows a thread that reads a pipe
    can block the loading of a library (numpy#24290).
    """
    _started.set()
    threading.Thread(target=_wait, args=(before_exit,), name="parent_watch", daemon=True).start()


def _hung_up() -> bool:
    """True if nobody holds the other end of stdin; reads nothing."""
    poll = select.poll()
    poll.register(STDIN, 0)
    return any(event & select.POLLHUP for _, event in poll.poll(0))


def _poll(parent: int) -> None:
    while not _started.wait(POLL_S):
        if os.getppid() != parent:
            os._exit(ORPHANED)


def _wait(before_exit: Callable[[], None]) -> None:
    try:
        while os.read(STDIN, 4096):  # whatever else the parent writes means nothing
            pass
    except OSError:
        pass
    before_exit()
    os._exit(ORPHANED)  # no cleanup: a run in native code would hold it up
