"""A checkpoint of MedGemma's geometry with random weights: right for time, memory and bytes, and
nothing else. Random weights say nothing about fidelity.

    python -m bench.checkpoint DIR [--layers N] [--tails T]
"""

import argparse
import json
from math import prod
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from build.tower import CONFIG, SINGLE, shapes

LAYERS = 27


def make(directory: Path, layers: int, tails: float = 0) -> Path:
    """Write a checkpoint in Hugging Face format, in BF16 as MedGemma's is, unless it is there.

    Weights are normal; with `tails`, they follow Student's t with so many degrees of freedom: the
    fewer, the further its largest lie from the others.
    """
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
        name: _fill(name, shape, random, tails).to(torch.bfloat16)
        for name, shape in shapes(config).items()
    }
    save_file(tensors, directory / SINGLE)
    (directory / CONFIG).write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    return directory


def _fill(name: str, shape: tuple[int, ...], random: torch.Generator, tails: float) -> torch.Tensor:
    if "norm" in name and name.endswith(".weight"):
        gain = 0.0 if "mm_soft_emb_norm" in name else 1.0  # Gemma's norm adds the 1 itself
        return gain + 0.1 * torch.randn(shape, generator=random)
    if len(shape) == 1:
        return 0.02 * torch.randn(shape, generator=random)
    inputs = shape[0] if name.endswith("input_projection_weight") else prod(shape[1:])
    spread = 0.02 if "position" in name else inputs**-0.5
    weight = spread * torch.randn(shape, generator=random)
    if tails and "position" not in name:
        # A normal number over the root of a gamma variable (its sum of squares) is a t variable.
        numbers = np.random.default_rng(shape[0] + len(name)).gamma(tails / 2, 2 / tails, shape)
        weight *= torch.from_numpy(((tails - 2) / tails / numbers) ** 0.5).float()
    return weight


def main() -> None:
    """Write the checkpoint."""
    parser = argparse.ArgumentParser(prog="python -m bench.checkpoint", description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--tails", type=float, default=0, metavar="T", help="more than 2")
    options = parser.parse_args()
    make(options.directory, options.layers, options.tails)
    print(f"{options.directory} is ready")


if __name__ == "__main__":
    main()
