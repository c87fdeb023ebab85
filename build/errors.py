"""The error for what is not as it should be. Nothing else, so that anything may import it."""


class BuildError(Exception):
    """The build cannot go on. The message says what was expected, what was found, what to do."""
