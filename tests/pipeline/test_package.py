"""The zip file: deterministic, small, and readable by any program."""

import io
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from build.artifacts import Plan, QuantisedLinear, Scheme
from build.package import add, entropy


def peaked(seed: int = 0, size: int = 1 << 20) -> np.ndarray[tuple[int], np.dtype[np.int8]]:
    """Integers of about 3.6 bits, as rate-distortion GPTQ leaves them."""
    return np.rint(3 * np.random.default_rng(seed).normal(size=size)).astype(np.int8)


def zipped(*files: Path) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for file in files:
            add(archive, file)
    return stream.getvalue()


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    (tmp_path / "graph.onnx.data").write_bytes(peaked().tobytes())
    return tmp_path / "graph.onnx.data"


def test_a_zip_file_depends_on_contents_alone(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    copy = tmp_path / "elsewhere" / weights.name
    copy.write_bytes(weights.read_bytes())
    copy.chmod(0o600)
    assert zipped(copy) == zipped(weights)


def test_what_is_unpacked_is_what_was_packed(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}" * 1000)
    content = zipped(weights, tmp_path / "manifest.json")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == [weights.name, "manifest.json"]
        assert archive.read(weights.name) == weights.read_bytes()
        assert archive.read("manifest.json") == b"{}" * 1000


def test_weights_are_stored_near_their_entropy(weights: Path) -> None:
    bits = entropy(Plan((linear(peaked().reshape(1024, 1024)),), {}))
    stored = 8 * len(zipped(weights)) / weights.stat().st_size
    assert bits < stored < 1.02 * bits
    assert 8 * len(zlib.compress(weights.read_bytes(), 9)) / weights.stat().st_size > 1.1 * bits


def linear(weight: np.ndarray[tuple[int, int], np.dtype[np.int8]]) -> QuantisedLinear:
    vector = np.ones(weight.shape[1], np.float32)
    return QuantisedLinear("fc", Scheme("float", None), 0.0, weight, vector, vector)


def test_entropy_by_hand() -> None:
    """Halves are one bit, quarters two; a constant needs none. Each layer has its own table."""
    halves = np.array([[1, -1], [-1, 1]], np.int8)
    quarters = np.array([[0, 1], [2, -3]], np.int8)
    constant = np.full((2, 2), 7, np.int8)
    plan = Plan(tuple(linear(weight) for weight in (halves, quarters, constant)), {})
    assert entropy(plan) == pytest.approx(1.0)
