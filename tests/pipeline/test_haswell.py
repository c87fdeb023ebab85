"""A CPU with AVX2 and without VNNI: its products of 8-bit integers overflow unless it is told."""

from pathlib import Path

import numpy as np
import pytest

from build.metrics import cosine
from sidecar import model_files
from sidecar.job import OUTPUTS
from sidecar.session import Session
from tests import haswell, tiny


@pytest.mark.slow
def test_a_cpu_without_vnni_gives_what_others_give(tmp_path: Path) -> None:
    if haswell.QEMU is None:
        pytest.skip("there is no qemu-x86_64 (Debian: qemu-user)")
    model = tiny.build(tmp_path / "model")
    pixels = np.random.default_rng(0).normal(size=(1, 3, 448, 448)).astype(np.float32)
    expected = Session(model / model_files.load(model).graph).run(pixels)
    state, found = haswell.encode(model, "off", {"noise": pixels})
    assert state["overflows"]
    for name in OUTPUTS:  # but for what lay between two integers and was rounded to the other one
        assert cosine(found["noise"][name], expected[name]).min() > 0.9999
    state, found = haswell.encode(model, "auto", {"noise": pixels})
    assert state["kernels"] or "not built" in state["why"]
    for name in OUTPUTS:
        assert cosine(found["noise"][name], expected[name]).min() > 0.999
