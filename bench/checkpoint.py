"""A checkpoint of MedGemma's geometry with random weights: right for time and memory, and nothing
else. Random weights say nothing about fidelity.
"""

import json
from math import prod
from pathlib import Path

import torch
from safetensors.torch import save_file

from build.tower import CONFIG, SINGLE, shapes

LAYERS = 27


def make(directory: Path, layers: int) -> Path:
    """Write a checkpoint in Hugging Face format, in BF16 as MedGemma's is, unless it is there."""
    if (directory / CONFIG).exists():
        return directory
    config = {
        "model_type": "gemma3",
        "architectures": ["Gemma3ForConditionalGeneration"],
        "mm_tokens_per_image": 256,
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_hidden_layers": layers,
            "num_attention_heads": 16,
            "image_size": 896,
            "patch_size": 14,
            "vision_use_head": False,
        },
        "text_config": {"model_type": "gemma3_text", "hidden_size": 2560},
    }
    directory.mkdir(parents=True, exist_ok=True)
    random = torch.Generator().manual_seed(0)
    tensors = {
        name: _fill(name, shape, random).to(torch.bfloat16)
        for name, shape in shapes(config).items()
    }
    save_file(tensors, directory / SINGLE)
    (directory / CONFIG).write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    return directory


def _fill(name: str, shape: tuple[int, ...], random: torch.Generator) -> torch.Tensor:
    if "norm" in name and name.endswith(".weight"):
        gain = 0.0 if "mm_soft_emb_norm" in name else 1.0  # Gemma's norm adds the 1 itself
        return gain + 0.1 * torch.randn(shape, generator=random)
    if len(shape) == 1:
        return 0.02 * torch.randn(shape, generator=random)
    inputs = shape[0] if name.endswith("input_projection_weight") else prod(shape[1:])
    spread = 0.02 if "position" in name else inputs**-0.5
    return spread * torch.randn(shape, generator=random)
