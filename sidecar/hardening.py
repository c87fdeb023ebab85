"""What the system may do with this process: write no core dump, and give it enough descriptors.

A dump would hold the image that was being encoded and the keys of the connection.
"""

import contextlib
import sys

PR_SET_DUMPABLE = 4  # Linux's <sys/prctl.h>
SEM_FAILCRITICALERRORS, SEM_NOGPFAULTERRORBOX = 0x0001, 0x0002  # Windows' <errhandlingapi.h>
OPEN_MAX = 10_240  # what macOS grants where its hard limit says "unlimited"


def forbid_core_dumps() -> None:
    """For this process, for good; call it before there is anything to hide.

    On Linux other processes of the same user can then not attach to it either. A limit of 0 alone
    would not keep a dump from a handler that the kernel pipes it into (core(5)).
    """
    if sys.platform == "win32":
        import ctypes

        ctypes.WinDLL("kernel32").SetErrorMode(SEM_FAILCRITICALERRORS | SEM_NOGPFAULTERRORBOX)
        return
    import resource

    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


def allow_descriptors() -> None:
    """Raise the soft limit of open descriptors to the hard one.

    Strangers' connections take descriptors too, for the two seconds until they are turned away.
    """
    if sys.platform == "win32":
        return
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for limit in (hard, OPEN_MAX):
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
            return
