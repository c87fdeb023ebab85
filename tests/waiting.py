"""Waiting for a condition in a test: never for a time."""

import time
from collections.abc import Callable
from typing import Any


def until(condition: Callable[..., Any], patience: float, what: str = "it happened") -> None:
    """Return once `condition` holds. Raises AssertionError after `patience` seconds."""
    end = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < end, f"never: {what}"
        time.sleep(0.002)
