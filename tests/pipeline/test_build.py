"""The whole build on a tiny random checkpoint: against Transformers, every size and recipe."""

import json
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from build import report, testset
from build.__main__ import ROOT, build, main, place, zip_of
from build.artifacts import CUSTOM_OP_GRAPHS, Artifact, BuildError
from build.checkpoint import locate
from build.images import VALIDATION
from build.metrics import Figure
from build.pipeline import Inputs
from build.recipes import RECIPES, Choice
from build.reference import VisionEncoderWrapper, load, scores
from build.validate import Bars, hold
from sidecar import custom_ops, model_files
from sidecar.custom_ops import CustomOpsUnavailable
from sidecar.job import OUTPUTS
from sidecar.session import Session
from tests import tiny

SIZES = ((448, 448), (224, 224), (224, 448), (448, 224))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint")


@pytest.fixture(scope="module")
def built(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model directory for each recipe."""
    root = tmp_path_factory.mktemp("built")
    for recipe in RECIPES:
        choice = Choice(no_bars=True, images=VALIDATION if recipe == "default" else VALIDATION[:2])
        build(str(checkpoint), root / recipe, recipe, choice, work=root / "work")
    return {recipe: root / recipe for recipe in RECIPES}


@pytest.fixture(scope="module")
def reference(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> VisionEncoderWrapper:
    out = tmp_path_factory.mktemp("extracted")
    locate(str(checkpoint))(Inputs(), out)
    return load(out, "projector")


def pixels(batch: int, height: int, width: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(batch).normal(size=(batch, 3, height, width)).astype(np.float32)


def session(directory: Path) -> Session:
    return Session(directory / model_files.load(directory).graph, threads=2)


def test_the_reference_is_what_transformers_gives_the_language_model(
    reference: VisionEncoderWrapper,
) -> None:
    x = torch.from_numpy(pixels(2, 448, 448))
    with torch.inference_mode():
        expected = tiny.model().get_image_features(x).pooler_output
        found = reference(x)[0]
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("size", SIZES)
def test_one_float_graph_runs_every_size_as_the_reference_does(
    built: dict[str, Path], reference: VisionEncoderWrapper, size: tuple[int, int], batch: int
) -> None:
    x = pixels(batch, *size)
    found = session(built["float"]).run(x)
    with torch.inference_mode():
        outputs = reference(torch.from_numpy(x))
    for name, expected in zip(OUTPUTS, outputs, strict=True):
        assert found[name].shape == tuple(expected.shape)
        assert np.abs(found[name] - expected.numpy()).max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("recipe", ["default", "compact"])
@pytest.mark.parametrize("size", SIZES)
def test_the_quantised_graph_runs_every_size_close_to_the_reference(
    built: dict[str, Path], reference: VisionEncoderWrapper, size: tuple[int, int], recipe: str
) -> None:
    x = pixels(3, *size)
    found = session(built[recipe]).run(x)[OUTPUTS[0]]
    with torch.inference_mode():
        expected = reference(torch.from_numpy(x))[0].numpy()
    cosine = (found * expected).sum(-1) / (
        np.linalg.norm(found, axis=-1) * np.linalg.norm(expected, axis=-1)
    )
    assert cosine.min() > 0.99


@pytest.mark.parametrize("name", CUSTOM_OP_GRAPHS)
def test_graphs_with_operators_of_ours_give_what_the_plain_one_gives(
    built: dict[str, Path], name: str
) -> None:
    try:
        custom_ops.variant(CUSTOM_OP_GRAPHS[name])
    except CustomOpsUnavailable as error:
        pytest.skip(str(error))
    ours, plain = Session(built["default"] / name, 2, custom_ops=True), session(built["default"])
    for height, width in SIZES:
        x = pixels(2, height, width)
        found, expected = (s.run(x)[OUTPUTS[0]] for s in (ours, plain))
        cosine = (found * expected).sum(-1) / (
            np.linalg.norm(found, axis=-1) * np.linalg.norm(expected, axis=-1)
        )
        assert cosine.min() > 0.99


def test_every_integer_product_and_attention_becomes_an_operator_of_ours(
    built: dict[str, Path],
) -> None:
    kinds = {
        name: Counter(node.op_type for node in ir.load(built["default"] / name).graph)
        for name in ("vision_encoder_quant.onnx", *CUSTOM_OP_GRAPHS)
    }
    plain, linear, attention = kinds.values()
    layers = linear["Linear"] + 2 * linear["Mlp"]
    assert layers == attention["MatMulInteger"] == plain["MatMulInteger"] > 0
    assert linear["NormaliseTokens"] == 2 * linear["Mlp"] > 0
    assert linear["Attention"] == attention["Attention"] == plain["MultiHeadAttention"] > 0
    left = ("MatMulInteger", "DynamicQuantizeLinear", "MultiHeadAttention", "FastGelu")
    assert not any(linear[kind] for kind in left)


def test_the_seed_recipe_knows_the_native_size_only(built: dict[str, Path]) -> None:
    assert model_files.load(built["seed"]).resolutions == (448,)
    assert model_files.load(built["default"]).resolutions == (224, 448)
    assert model_files.load(built["seed"]).projection == "linear"


def test_every_weight_is_stored_in_8_bits(built: dict[str, Path]) -> None:
    model = onnx.load(built["default"] / "vision_encoder_quant.onnx", load_external_data=False)
    stored = {
        tensor.name: tensor.data_type
        for tensor in model.graph.initializer
        if np.prod(tensor.dims) > max(tensor.dims, default=1)  # more than a vector
    }
    a_layer = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
    others = ("patch_embedding", "position_embedding", "projection")
    assert len(stored) == tiny.VISION["num_hidden_layers"] * len(a_layer) + len(others)
    assert set(stored.values()) == {onnx.TensorProto.INT8}


def test_building_again_gives_the_same_bytes(
    built: dict[str, Path], checkpoint: Path, tmp_path: Path
) -> None:
    few = Choice(no_bars=True, images=VALIDATION[:2])
    for recipe in ("compact", "seed"):
        build(str(checkpoint), tmp_path / recipe, recipe, few, work=tmp_path / "w")
        again, first = model_files.load(tmp_path / recipe), model_files.load(built[recipe])
        assert again.files == first.files
    assert (tmp_path / "compact.zip").read_bytes() == zip_of(built["compact"]).read_bytes()


NODE = """
const fs = require('node:fs');
const [file, out] = process.argv.slice(1);
for (const [name, bytes] of Object.entries(require('fflate').unzipSync(fs.readFileSync(file))))
  fs.writeFileSync(`${out}/${name}`, bytes);
"""  # as `fetchModel` of the bridge, which reads it as a stream
UNPACKERS: dict[str, Callable[[Path, Path], object]] = {
    "python": lambda file, out: shutil.unpack_archive(file, out),
    "unzip": lambda file, out: subprocess.run(["unzip", "-q", file, "-d", out], check=True),
    "node": lambda file, out: subprocess.run(
        ["node", "-e", NODE, file, out], cwd=ROOT / "electron_bridge", check=True
    ),
}


@pytest.mark.parametrize("program", UNPACKERS)
def test_the_zip_file_of_compact_is_the_model_directory(
    built: dict[str, Path], tmp_path: Path, program: str
) -> None:
    if not shutil.which(program):
        pytest.skip(f"{program} is not here")
    UNPACKERS[program](zip_of(built["compact"]), tmp_path)
    described = model_files.load(tmp_path)  # checks every size and hash
    assert described == model_files.load(built["compact"])
    assert {file.name for file in tmp_path.iterdir()} == {*described.files, "manifest.json"}
    for file in tmp_path.iterdir():
        assert file.read_bytes() == (built["compact"] / file.name).read_bytes()


def test_the_report_of_compact_tells_of_its_zip_file_and_of_default(built: dict[str, Path]) -> None:
    told = json.loads((built["compact"] / "report.json").read_text())
    content = zip_of(built["compact"]).read_bytes()
    assert told["zip"]["bytes"] == len(content)
    assert told["zip"]["sha256"] == sha256(content).hexdigest()
    assert 0 < told["zip"]["entropy"] < 8
    assert told["compared"]["recipe"] == "default"
    assert told["compared"]["resolutions"].keys() == told["resolutions"].keys()
    rows = [line.split("|")[1].strip() for line in report.table([told]).splitlines()[2:6]]
    assert rows[:2] == ["`default`, 224", "`default`, 448"]
    assert not zip_of(built["default"]).exists()


def test_a_zip_file_that_is_no_model_is_left_alone(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model.zip").write_text("mine")
    arguments = [str(checkpoint), "--out", str(tmp_path / "model"), "--recipe", "compact"]
    assert main(arguments) == 1
    assert "model.zip is not the zip file of a model" in capsys.readouterr().err
    assert (tmp_path / "model.zip").read_text() == "mine"
    assert not (tmp_path / "model").exists()


def test_a_second_build_of_the_same_is_known_to_be_up_to_date(
    checkpoint: Path, tmp_path: Path
) -> None:
    told: list[str] = []
    for _ in range(2):
        build(
            str(checkpoint),
            tmp_path / "out",
            "float",
            Choice(no_bars=True, images=VALIDATION[:2]),
            work=tmp_path / "work",
            tell=told.append,
        )
    assert told[-1].endswith("is up to date")
    assert list((tmp_path / "work").iterdir()) == []


def test_a_bar_out_of_reach_stops_the_build_with_image_output_and_distance(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(checkpoint), "--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
    arguments += ["--images", "2"]
    assert main([*arguments, "--no-bars", "--recipe", "float"]) == 0
    before = model_files.load(tmp_path / "out").digest
    assert main([*arguments, "--recipe", "float", "--bar", "heatmap_r_min=1.5"]) == 1
    said = capsys.readouterr().err
    assert "heatmap_r_min of at least 1.5" in said
    assert "below): attention_scores is worst for" in said
    assert "images at 448 pixels:" in said  # while it went on
    assert model_files.load(tmp_path / "out").digest == before


def test_bars_of_none_hold_nothing_back() -> None:
    figures = {name: Figure(-1.0, "pooled_embedding", "moon.png") for name in vars(Bars())}
    hold(Bars(), figures, "448 pixels")
    with pytest.raises(BuildError, match=r"kendall_tau of at least 0\.5 at 448 .* moon\.png"):
        hold(Bars(kendall_tau=0.5), figures, "448 pixels")


def test_fewer_images_are_evenly_spread_and_hold_no_ranking() -> None:
    choice = Choice.parse(None, None, ["kendall_tau=0.5"], False, 4)
    assert choice.images == VALIDATION[::4]
    assert choice.share == "4 of 16"
    held = choice.hold(Bars(clear_neighbours_kept=1.0, kendall_tau=0.97, heatmap_r_min=0.9))
    assert held == Bars(kendall_tau=0.5, heatmap_r_min=0.9)  # what was asked for is held
    assert Choice.parse(None, None, [], False).images == VALIDATION
    with pytest.raises(BuildError, match="from 2 to 16, found 1"):
        Choice.parse(None, None, [], False, 1)


def test_a_directory_that_is_not_a_model_is_never_replaced(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    assert main([str(checkpoint), "--out", str(tmp_path)]) == 1
    assert "not a model directory" in capsys.readouterr().err
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_model_directory_with_a_file_of_someone_else_is_kept(
    built: dict[str, Path], checkpoint: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(built["float"], tmp_path / "out")
    (out / "notes.txt").write_text("mine")
    with pytest.raises(BuildError, match=r"notes\.txt"):
        build(str(checkpoint), out, "float", work=tmp_path / "work")


def test_equal_norms_give_scores_of_zero() -> None:
    assert scores(torch.ones(2, 256, 8)).eq(0).all()


def test_the_report_has_every_figure_at_both_sizes(built: dict[str, Path]) -> None:
    report = json.loads((built["default"] / "report.json").read_text())
    assert report["resolutions"].keys() == {"224", "448"}
    for figures in report["resolutions"].values():
        assert figures.keys() == vars(Bars()).keys()
    assert len(set(report["images"])) >= 16
    assert report["bytes"]["model"] < report["bytes"]["float"]
    assert {"checkpoint", "export", "quantise", "validate"} <= report["seconds"].keys()


def test_a_model_that_cannot_be_put_in_place_leaves_the_old_one_there(
    built: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = shutil.copytree(built["float"], tmp_path / "out")
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise OSError("the antivirus holds it")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="antivirus"):
        place({Artifact.MANIFEST: built["default"]}, out, {})
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before


def test_reports_become_one_table(
    built: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report.main([str(built["seed"]), str(built["default"])]) == 0
    table, notes = capsys.readouterr().out.strip().split("\n\n", 1)
    assert table.startswith("| recipe, pixels")
    head, _, *rows = (line.strip("| ").split(" | ") for line in table.splitlines())
    assert [row[0] for row in rows][:3] == ["`seed`, 448", "`default`, 224", "`default`, 448"]
    figures = json.loads((built["seed"] / "report.json").read_text())["resolutions"]["448"]
    value = figures["pooled_cosine_min"]["value"]
    assert rows[0][head.index("pooled min")] == f"{value:.4f}"
    assert "`linear`" in notes
    assert "`projector`" in notes
    assert report.main([str(tmp_path)]) == 1
    assert "expected a model directory" in capsys.readouterr().err


def test_the_test_set_is_the_last_table_and_decides_nothing(
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few = dict(list(testset.IMAGES.items())[:3])
    monkeypatch.setattr(testset, "IMAGES", few)
    choice = Choice(images=VALIDATION[:2], test=testset.Unseen.here())
    # Random weights move the neighbours of unseen images as they like: no bar is held against it.
    build(str(checkpoint), tmp_path / "float", "float", choice, work=tmp_path / "work")
    told = json.loads((tmp_path / "float" / "report.json").read_text())
    assert told["images"] == sorted(VALIDATION[:2])
    assert told["test"]["images"] == sorted(few)
    assert "The test set, 3 images that decided nothing:" in report.table([told])
    last = [part for part in report.table([told]).split("\n\n") if part.startswith("| recipe")][-1]
    value = told["test"]["resolutions"]["448"]["pooled_cosine_min"]["value"]
    assert f"{value:.4f}" in last


def test_each_neighbour_that_changed_is_told_with_its_lead(built: dict[str, Path]) -> None:
    told = json.loads((built["default"] / "report.json").read_text())
    change = {"image": "a.png", "before": "b.png", "after": "c.png", "lead": 0.00123}
    told["changed_neighbours"] = {"plain": {"448": [change]}, "kernels": {"448": [change]}}
    text = report.table([told])
    line = "a.png, from b.png to c.png, which it had led by 0.0012"
    assert f"- `default`, 448: {line}" in text
    assert f"- `default`, 448, custom ops: {line}" in text
