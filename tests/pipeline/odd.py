"""A random Gemma 3 checkpoint of odd sizes, written in any layout that Transformers has used."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

HIDDEN, LAYERS, HEADS, IMAGE, TEXT_HIDDEN = 96, 5, 3, 448, 320
DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
LAYOUTS = {  # what stands before the tower's name, and within
    "2025, vision_model": ("", "vision_model."),
    "model and vision_model": ("model.", "vision_model."),
    "model": ("model.", ""),
    "plain": ("", ""),
}


@cache
def model() -> Gemma3ForConditionalGeneration:
    torch.manual_seed(5)
    config = Gemma3Config(
        vision_config={
            "hidden_size": HIDDEN,
            "intermediate_size": 200,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "image_size": IMAGE,
            "patch_size": 14,
            "vision_use_head": False,
        },
        text_config={
            "hidden_size": TEXT_HIDDEN,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 32,
            "vocab_size": 2000,
        },
    )
    made = Gemma3ForConditionalGeneration(config)
    with torch.no_grad():  # Transformers initialises the projection to zeros
        made.model.multi_modal_projector.mm_input_projection_weight.normal_(std=0.1)
    return made.eval()


def tower() -> dict[str, torch.Tensor]:
    """The vision tower and the projector under our names, float32."""
    return {
        key.removeprefix("model."): tensor
        for key, tensor in model().state_dict().items()
        if key.startswith(("model.vision_tower.", "model.multi_modal_projector."))
    }


def write(
    directory: Path,
    layout: str = "2025, vision_model",
    dtype: str = "BF16",
    shards: int = 1,
    change: Mapping[str, torch.Tensor | None] | None = None,
) -> Path:
    """Write a whole checkpoint; `change` replaces tensors, by our names for them, or drops them."""
    directory.mkdir(parents=True)
    before, within = LAYOUTS[layout]
    tensors = {name: tensor.to(DTYPES[dtype]) for name, tensor in tower().items()}
    for name, replacement in (change or {}).items():
        tensors.pop(name, None)
        if replacement is not None:
            tensors[name] = replacement
    keyed = {
        before + name.replace("vision_tower.", "vision_tower." + within): tensor.contiguous()
        for name, tensor in tensors.items()
    }
    for key, tensor in model().state_dict().items():
        if key.startswith("model.language_model."):
            keyed["language_" + key.removeprefix("model.language_")] = tensor.to(DTYPES[dtype])
    config = model().config.to_dict()
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    if shards == 1:
        save_file(keyed, directory / "model.safetensors", {"format": "pt"})
        return directory
    # Cut where the tower is in the middle of it, so that both shards hold some.
    names = sorted(keyed)
    weight_map = {name: _shard(names.index(name) * shards // len(names), shards) for name in names}
    for file in set(weight_map.values()):
        part = {name: keyed[name] for name in names if weight_map[name] == file}
        save_file(part, directory / file, {"format": "pt"})
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


def edit_config(directory: Path, **changes: Any) -> Path:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return directory


def _shard(number: int, of: int) -> str:
    return f"model-{number + 1:05}-of-{of:05}.safetensors"


PREPROCESSOR = {
    "do_normalize": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "image_processor_type": "Gemma3ImageProcessor",
    "resample": 2,
    "rescale_factor": 0.00392156862745098,
    "size": {"height": IMAGE, "width": IMAGE},
}
