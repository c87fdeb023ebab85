"""Ends this process when its parent is gone: the parent holds our stdin, and end of file says so.

A pipe tells of a parent's death by any cause, on every system, within milliseconds. Polling for a
new parent id takes longer; Linux's parent-death signal fires when the thread that spawned us ends,
which kills the sidecars of healthy apps.
"""

import os
import threading

STDIN = 0
ORPHANED = 0  # nobody is left to read an exit status


def watch() -> None:
    """Exit, whatever the process is doing, at end of file. Import native modules before this:
    on Windows a thread that reads a pipe can block the loading of a library (numpy#24290).
    """
    threading.Thread(target=_wait, name="lifeline", daemon=True).start()


def _wait() -> None:
    try:
        while os.read(STDIN, 4096):  # whatever else the parent writes means nothing
            pass
    except OSError:
        pass
    os._exit(ORPHANED)  # no cleanup: a run in native code would hold it up
