"""A random Gemma 3 checkpoint of two layers, and the model directory that the build makes of it.

`python -m tests.tiny DIR [--recipe …]` does so from the shell, for tests in another language.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

VISION = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 448,
    "patch_size": 14,
    "vision_use_head": False,
}
TEXT = {
    "hidden_size": 96,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "vocab_size": 64,
}


def model(seed: int = 0, **vision: Any) -> Gemma3ForConditionalGeneration:
    """Random weights; Transformers leaves the projection at zero, so it is filled here."""
    torch.manual_seed(seed)
    config = Gemma3Config(
        vision_config={**VISION, **vision},
        text_config=TEXT,
        mm_tokens_per_image=256,
        image_token_index=60,
        boi_token_index=61,
        eoi_token_index=62,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    made = Gemma3ForConditionalGeneration(config).eval()
    projector = made.model.multi_modal_projector
    with torch.no_grad():
        projector.mm_input_projection_weight.normal_(std=0.2)
        projector.mm_soft_emb_norm.weight.normal_(std=0.2)
        for parameter in made.model.vision_tower.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return made


def checkpoint(directory: Path, seed: int = 0, **vision: Any) -> Path:
    """Write the model above in Hugging Face format."""
    model(seed, **vision).save_pretrained(directory)
    return directory


def build(out: Path, recipe: str = "default", seed: int = 0, **vision: Any) -> Path:
    """Build a tiny model directory; random weights are held to no bars."""
    from build.__main__ import build as run
    from build.images import VALIDATION
    from build.recipes import Choice

    with tempfile.TemporaryDirectory() as scratch:
        source = checkpoint(Path(scratch) / "tiny", seed, **vision)
        run(
            str(source),
            out,
            recipe,
            Choice(no_bars=True, images=VALIDATION[:2]),
            work=Path(scratch) / "work",
        )
    return out


def main() -> None:
    """Build a tiny model directory from the shell."""
    parser = argparse.ArgumentParser(prog="python -m tests.tiny", description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--recipe", default="default")
    options = parser.parse_args()
    build(options.out, options.recipe)


if __name__ == "__main__":
    main()
