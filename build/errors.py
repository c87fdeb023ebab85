"""The one error that the build raises on purpose; `__main__` prints it and exits non-zero."""


class BuildError(Exception):
    """One sentence or two for the person at the terminal: expected, found, what to do."""
