"""The short form of the mutations that `make attack` runs by the thousand."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar.decoder import Decoders
from tests.attack import mutated_images, mutated_models


@pytest.fixture(scope="module")
def decoders() -> Iterator[Decoders]:
    with contextlib.closing(Decoders()) as started:
        yield started


@pytest.mark.parametrize("kind", mutated_images.FORMATS)
def test_a_mutated_image_is_an_image_or_refused(kind: str, decoders: Decoders) -> None:
    codes = mutated_images.run(kind, 1, 300, decoders)
    assert set(codes) > {"ok", "image.unreadable"}


def test_a_model_directory_that_something_happened_to_loads_or_is_refused(tmp_path: Path) -> None:
    codes = mutated_models.run(tmp_path, 1, 200)
    assert set(codes) >= {"ok", "model.invalid"}
