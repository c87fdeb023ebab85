"""No graph is trusted that computes another number here than where it was built."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from sidecar import custom_ops, engine, manifest, session
from sidecar.engine import Choice
from sidecar.errors import ModelInvalid, ModelUnfaithful, ResourcesExhausted
from sidecar.manifest import CustomOpsGraph
from sidecar.model_files import ModelFiles
from tests import client, stand_in
from tests.client import ZmqClient

GRAPH = "vision_encoder_quant.onnx"
GOLDEN = "golden.npz"

Arrays = dict[str, Any]
Spoil = Callable[[Arrays, int], Arrays]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """The stand-in with a golden record."""
    made = stand_in.make(tmp_path / "model")
    engine.record(session.Session(made / GRAPH), min(stand_in.SIDES), made / GOLDEN)
    list_files(made, golden=GOLDEN)
    return made


def list_files(directory: Path, *more: str, **changes: Any) -> None:
    names = [GRAPH, *more, *([GOLDEN] if (directory / GOLDEN).exists() else [])]
    described = replace(manifest.read(directory), files=manifest.describe(directory, names))
    manifest.write(replace(described, **changes), directory)


def select(directory: Path, threads: int = 2, kernels: str = "auto") -> Choice:
    with ModelFiles(directory, manifest.read(directory)) as files:
        return engine.select(files, threads, kernels)[1]


class Machine:
    """A CPU on which some sessions compute something else; keeps how each one was opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened: list[tuple[str, int, bool]] = []
        self.spoil: Spoil = lambda arrays, _: arrays
        self.spoils: Callable[[str, int, bool], bool] = lambda *_: True
        machine = self

        class Spoiled(session.Session):
            def __init__(
                self, graph: Path, threads: int = 0, custom_ops: bool = False, kleidiai: bool = True
            ) -> None:
                self.how = (graph.name, threads, kleidiai)
                machine.opened.append(self.how)
                self.runs = 0
                super().__init__(graph, threads, False, kleidiai)

            def run(self, *arguments: Any) -> Arrays:
                arrays = super().run(*arguments)
                self.runs += 1
                return machine.spoil(arrays, self.runs) if machine.spoils(*self.how) else arrays

        monkeypatch.setattr(engine, "Session", Spoiled)
        monkeypatch.setattr(custom_ops, "variant", lambda _: "SOME-SET")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def negated(arrays: Arrays, _: int) -> Arrays:
    return arrays | {"pooled_embedding": -arrays["pooled_embedding"]}


def shuffled(arrays: Arrays, _: int) -> Arrays:
    return arrays | {"attention_scores": arrays["attention_scores"][:, ::-1]}


def infinite(arrays: Arrays, _: int) -> Arrays:
    spoiled = arrays["projected_embeddings"].copy()
    spoiled[0, 7, 3] = np.inf
    return arrays | {"projected_embeddings": spoiled}


def wavering(arrays: Arrays, run: int) -> Arrays:
    return arrays | {"projected_embeddings": arrays["projected_embeddings"] + np.float32(run)}


def failing(arrays: Arrays, _: int) -> Arrays:
    raise RuntimeError("a node failed")


WRONG: dict[str, tuple[Spoil, str]] = {
    "other embeddings": (negated, "cosine of the pooled embeddings is -1.0000"),
    "another heatmap": (shuffled, "correlation of the heatmaps"),
    "infinity": (infinite, "not finite"),
    "two runs that differ": (wavering, "two runs"),
    "a failure": (failing, "does not get through"),
}


@pytest.mark.parametrize(("spoil", "says"), WRONG.values(), ids=WRONG)
def test_a_plain_graph_that_computes_something_else_is_tried_otherwise_and_then_refused(
    machine: Machine, directory: Path, spoil: Spoil, says: str
) -> None:
    machine.spoil = spoil
    with pytest.raises(ModelUnfaithful, match=says):
        select(directory)
    assert machine.opened == [(GRAPH, 2, True), (GRAPH, 2, False), (GRAPH, 1, False)]


@pytest.mark.parametrize("spoil", [infinite, wavering], ids=["infinity", "two runs that differ"])
def test_a_model_without_a_record_is_checked_too(
    machine: Machine, tmp_path: Path, spoil: Spoil
) -> None:
    made = stand_in.make(tmp_path / "model")
    assert select(made).check == engine.Check()
    machine.spoil = spoil
    with pytest.raises(ModelUnfaithful):
        select(made)


def test_where_kleidiai_is_wrong_the_graph_runs_without_it(
    machine: Machine, directory: Path
) -> None:
    machine.spoil, machine.spoils = infinite, lambda _graph, _threads, kleidiai: kleidiai
    choice = select(directory)
    assert (choice.graph, choice.threads, choice.kleidiai) == (GRAPH, 2, False)


def test_where_threads_are_wrong_the_graph_runs_on_one(machine: Machine, directory: Path) -> None:
    machine.spoil, machine.spoils = wavering, lambda _graph, threads, _kleidiai: threads != 1
    choice = select(directory)
    assert (choice.threads, choice.kleidiai) == (1, False)


def test_a_right_graph_is_opened_once_and_its_figures_are_told(
    machine: Machine, directory: Path
) -> None:
    choice = select(directory)
    assert machine.opened == [(GRAPH, 2, True)]
    assert choice.check.difference == ""
    assert choice.check.pooled_cosine == pytest.approx(1, abs=1e-6)
    assert choice.check.heatmap_r == pytest.approx(1, abs=1e-6)


@pytest.fixture
def with_kernels(directory: Path) -> Path:
    """With two graphs for custom ops, which are the plain one: a `Machine` needs no library."""
    for name in ("fast.onnx", "faster.onnx"):
        (directory / name).write_bytes((directory / GRAPH).read_bytes())
    graphs = (CustomOpsGraph("faster.onnx", ("A", "B")), CustomOpsGraph("fast.onnx", ("A",)))
    list_files(directory, "fast.onnx", "faster.onnx", kernels=graphs, golden=GOLDEN)
    return directory


def test_the_fastest_graph_that_is_right_is_used(machine: Machine, with_kernels: Path) -> None:
    choice = select(with_kernels)
    assert (choice.graph, choice.custom_ops.on) == ("faster.onnx", True)
    assert "SOME-SET for A, B" in choice.custom_ops.why
    machine.spoil, machine.spoils = negated, lambda graph, *_: graph == "faster.onnx"
    choice = select(with_kernels)
    assert (choice.graph, choice.custom_ops.on) == ("fast.onnx", True)
    machine.spoils = lambda graph, *_: graph != GRAPH
    choice = select(with_kernels)
    assert (choice.graph, choice.custom_ops.on) == (GRAPH, False)
    assert "golden input did not come out" in choice.custom_ops.why
    assert select(with_kernels, kernels="off").custom_ops.why.startswith("they were switched off")


def test_a_shortage_during_the_check_is_no_fault_of_the_model(
    machine: Machine, directory: Path
) -> None:
    def short(_arrays: Arrays, _run: int) -> Arrays:
        raise RuntimeError("Failed to allocate memory for requested buffer of size 5")

    machine.spoil = short
    with pytest.raises(ResourcesExhausted):
        select(directory)


def npz(**arrays: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.savez(out, allow_pickle=False, **arrays)
    return out.getvalue()


def bomb() -> bytes:
    """2 GiB of zeros in 2 MiB, under the names of the record."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in engine.RECORDED:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array_header_1_0(
                    entry, {"descr": "<f4", "fortran_order": False, "shape": (2**18, 1024)}
                )
                for _ in range(256):
                    entry.write(bytes(2**20))
    return out.getvalue()


def huge_header() -> bytes:
    """A few bytes that claim a terabyte."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (2**38,)}
    )
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name in engine.RECORDED:
            archive.writestr(f"{name}.npy", header.getvalue() + bytes(1024))
    return out.getvalue()


POOLED, SCORES = np.zeros((1, stand_in.HIDDEN), np.float32), np.zeros((1, 256), np.float32)
RECORDS: dict[str, Callable[[], bytes]] = {
    "no npz": lambda: b"golden",
    "nothing": lambda: b"",
    "without its arrays": lambda: npz(x=POOLED),
    "of another width": lambda: npz(
        pooled_embedding=np.zeros((1, 9), np.float32), attention_scores=SCORES
    ),
    "of another type": lambda: npz(
        pooled_embedding=POOLED, attention_scores=SCORES.astype(np.int32)
    ),
    "of another order of sides": lambda: npz(pooled_embedding=POOLED.T, attention_scores=SCORES),
    "cut short": lambda: npz(pooled_embedding=POOLED, attention_scores=SCORES)[:-30],
    "a bomb": bomb,
    "a header that claims a terabyte": huge_header,
    "beyond reason": lambda: bytes(engine.MAX_RECORD_BYTES + 1),
}


@pytest.mark.parametrize("record", RECORDS.values(), ids=RECORDS)
def test_a_record_is_refused_that_is(record: Callable[[], bytes], directory: Path) -> None:
    (directory / GOLDEN).write_bytes(record())
    list_files(directory, golden=GOLDEN)
    with pytest.raises(ModelInvalid, match=GOLDEN):
        select(directory)


def test_another_width_than_the_graphs_is_refused(tmp_path: Path) -> None:
    made = stand_in.make(tmp_path / "model")
    list_files(made, text_hidden=stand_in.HIDDEN + 1)
    with pytest.raises(ModelInvalid, match=r"\[1, 256, 8\] where the manifest says \[1, 256, 9\]"):
        select(made)


@pytest.fixture
def external(tmp_path: Path) -> Path:
    """The stand-in, its weights in a file of their own that the manifest does not list."""
    made = stand_in.make(tmp_path / "model")
    model = onnx.load(made / GRAPH)
    onnx.save(model, made / GRAPH, save_as_external_data=True, location="w.bin", size_threshold=64)
    list_files(made)
    return made


def test_weights_in_a_file_that_the_manifest_lists_are_loaded(external: Path) -> None:
    list_files(external, "w.bin")
    assert select(external).graph == GRAPH


def test_weights_in_a_file_that_the_manifest_does_not_list_are_refused(external: Path) -> None:
    done = client.run_cli("verify", "--model", external)
    assert done.returncode == 1
    assert done.stderr.startswith(f"model.invalid: {GRAPH} reads weights from a file that")


def test_a_graph_that_is_none_is_refused(directory: Path) -> None:
    (directory / GRAPH).write_bytes(b"\xff" * 100)
    list_files(directory, golden=GOLDEN)
    with pytest.raises(ModelInvalid, match=GRAPH):
        select(directory)


def test_the_figures_are_in_verify_and_stats(directory: Path) -> None:
    done = client.run_cli("verify", "--model", directory)
    assert done.returncode == 0, done.stderr
    assert f"{GRAPH} gave equal numbers for the golden input twice, with cosine 1.0" in done.stdout
    with ZmqClient(directory) as sidecar:
        check = sidecar.ask("stats").header["check"]
    assert check["graph"] == GRAPH
    assert check["kleidiai"] is True
    assert check["pooled_cosine"] == pytest.approx(1, abs=1e-6)
    assert check["heatmap_r"] == pytest.approx(1, abs=1e-6)


def test_a_model_that_is_not_faithful_is_fatal_by_its_code(directory: Path) -> None:
    with np.load(directory / GOLDEN) as recorded:
        arrays = {name: -recorded[name] for name in recorded}
    (directory / GOLDEN).write_bytes(npz(**arrays))
    list_files(directory, golden=GOLDEN)
    done = client.run_cli("verify", "--model", directory)
    assert done.returncode == 1
    assert done.stderr.startswith("model.unfaithful: ")
    with ZmqClient(directory, ready=False) as sidecar:
        event = sidecar.event()
    assert (event["event"], event["code"]) == ("fatal", "model.unfaithful"), json.dumps(event)
