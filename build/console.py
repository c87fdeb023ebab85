"""What a command of the build tells the person at the terminal, and its exit code."""

import sys
from collections.abc import Callable

from build.errors import BuildError
from sidecar.errors import SidecarError


def tell(line: str) -> None:
    """Print it now, also into a pipe."""
    print(line, flush=True)


def exit_code(name: str, work: Callable[[], None], *, resumes: bool) -> int:
    """0; 1 after one clear sentence; 130 where the person interrupted.

    `resumes`: run again, `work` goes on where it stopped.
    """
    try:
        work()
    except (BuildError, SidecarError, OSError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        again = " Run it again to go on where it stopped." if resumes else ""
        print(f"{name}: interrupted.{again}", file=sys.stderr)
        return 130
    return 0
