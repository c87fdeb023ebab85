"""What a Gemma 3 checkpoint holds of the vision tower and the projector: names, shapes, shards.

Knows the layouts that Transformers has written and what `config.json` promises; reads no file.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from build.errors import BuildError
from build.tensors import FLOATS, Tensor
from sidecar.manifest import GRID, TOKENS

ARCHITECTURE = "gemma3"  # MedGemma's `model_type` too
CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
# Where the image processor is written down: of its own, or since Transformers 5 within another.
PROCESSORS = ("preprocessor_config.json", "processor_config.json")

# With and without a leading `model.`, with and without a `vision_model.` inside the tower.
LAYOUTS = re.compile(
    r"(?:model\.)?(?:(vision_tower\.)(?:vision_model\.)?|(multi_modal_projector\.))(.+)"
)
# SigLIP's own pooling, which Gemma has no use for, and a buffer that old versions stored.
UNUSED = re.compile(r"vision_tower\.(?:head\..+|embeddings\.position_ids)")

# Transformers leaves a value out of config.json where it equals its own default.
VISION_DEFAULTS = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 16,
}
TEXT_DEFAULTS = {"hidden_size": 2304}


@dataclass(frozen=True, slots=True)
class Piece:
    """A tensor that we keep, and the shard that holds it."""

    file: str
    tensor: Tensor


def read_config(text: bytes, name: str) -> dict[str, Any]:
    """Parse `config.json` and make sure that it is Gemma 3's with vision. Raises BuildError."""
    try:
        config = json.loads(text)
    except ValueError as error:
        raise BuildError(f"{CONFIG} of {name} is not JSON. Download or copy it again.") from error
    found = config.get("model_type") if isinstance(config, dict) else None
    if found == f"{ARCHITECTURE}_text":
        raise BuildError(
            f"{name} is a {found} model, which has no vision tower; expected {ARCHITECTURE}, "
            "such as MedGemma 4B. Choose a checkpoint that takes images."
        )
    if not isinstance(config, dict) or found != ARCHITECTURE:
        named = ", ".join(map(str, config.get("architectures") or ())) if found else ""
        what = (
            f"{found} model{f' ({named})' if named else ''}" if found else "model of no known type"
        )
        raise BuildError(
            f"{name} is a {what}; expected {ARCHITECTURE}, the architecture of Gemma 3 and "
            "MedGemma. Choose such a checkpoint."
        )
    return config


def shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor that we need, under our name, with the shape that `config` gives it.

    Raises BuildError where the geometry is one that this project does not run.
    """
    vision = _sizes(config, "vision_config", VISION_DEFAULTS)
    text_hidden = _sizes(config, "text_config", TEXT_DEFAULTS)["hidden_size"]
    hidden, wide = vision["hidden_size"], vision["intermediate_size"]
    patch, image = vision["patch_size"], vision["image_size"]
    if image % (GRID * patch):
        raise BuildError(
            f"{CONFIG} has images of {image} pixels in patches of {patch}; expected a multiple of "
            f"{GRID * patch}, so that they pool to {GRID} x {GRID} tokens."
        )
    tokens = config.get("mm_tokens_per_image", TOKENS)
    if tokens != TOKENS:
        raise BuildError(f"{CONFIG} has {tokens} tokens per image; expected {TOKENS}.")
    found: dict[str, tuple[int, ...]] = {
        "vision_tower.embeddings.patch_embedding.weight": (
            hidden,
            vision["num_channels"],
            patch,
            patch,
        ),
        "vision_tower.embeddings.patch_embedding.bias": (hidden,),
        "vision_tower.embeddings.position_embedding.weight": ((image // patch) ** 2, hidden),
        "multi_modal_projector.mm_input_projection_weight": (hidden, text_hidden),
        "multi_modal_projector.mm_soft_emb_norm.weight": (hidden,),
        **_norm("vision_tower.post_layernorm", hidden),
    }
    for number in range(vision["num_hidden_layers"]):
        layer = f"vision_tower.encoder.layers.{number}"
        for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
            found |= _linear(f"{layer}.self_attn.{projection}", hidden, hidden)
        found |= _linear(f"{layer}.mlp.fc1", hidden, wide)
        found |= _linear(f"{layer}.mlp.fc2", wide, hidden)
        found |= _norm(f"{layer}.layer_norm1", hidden) | _norm(f"{layer}.layer_norm2", hidden)
    return found


def canonical(key: str) -> str | None:
    """The name under which we keep a checkpoint's tensor, or None where we do not need it."""
    match = LAYOUTS.fullmatch(key)
    if match is None:
        return None
    name = "".join(part or "" for part in match.groups())
    return None if UNUSED.fullmatch(name) else name


def select(
    shards: Mapping[str, Mapping[str, Tensor]], config: Mapping[str, Any]
) -> dict[str, Piece]:
    """Find every tensor that we need in the shards' headers, sorted by our name for it.

    Raises BuildError where one is missing, unknown, there twice, misshapen or not a float.
    """
    expected = shapes(config)
    found: dict[str, Piece] = {}
    for key, piece in _entries(shards):
        name = canonical(key)
        if name is None:
            continue
        if ".lora_" in name or ".base_layer." in name:
            raise BuildError(f"the checkpoint holds LoRA weights unmerged ({key}). {MERGE}")
        if name in found:
            raise BuildError(
                f"the checkpoint holds {name} twice, in {found[name].file} and {piece.file}. "
                "Save it again with Transformers' save_pretrained, into an empty directory."
            )
        if piece.tensor.dtype not in FLOATS:
            raise BuildError(
                f"{key} is stored as {piece.tensor.dtype}; expected one of {', '.join(FLOATS)}. "
                "Use the checkpoint that was not quantised."
            )
        if name not in expected:
            raise BuildError(
                f"the checkpoint holds {key}, which the model that {CONFIG} describes does not "
                f"have. Use the {CONFIG} that belongs to these weights."
            )
        if piece.tensor.shape != expected[name]:
            raise BuildError(
                f"{key} has shape {list(piece.tensor.shape)}; expected {list(expected[name])}, as "
                f"{CONFIG} says. Use the {CONFIG} that belongs to these weights."
            )
        found[name] = piece
    for name in sorted(expected.keys() - found.keys()):
        raise BuildError(
            f"the checkpoint lacks {name} with shape {list(expected[name])}, which {CONFIG} asks "
            "for. Download or copy the whole checkpoint, or save it again with its vision tower."
        )
    return dict(sorted(found.items()))


def shard_names(index: bytes) -> list[str]:
    """The shards that hold tensors of ours, by the checkpoint's index. Raises BuildError."""
    try:
        where = json.loads(index)["weight_map"]
        names = {str(file) for key, file in where.items() if canonical(key)}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BuildError(f"{INDEX} cannot be read. Download or copy it again.") from error
    for name in names:
        if not re.fullmatch(r"[\w.-]+\.safetensors", name):
            raise BuildError(f"{INDEX} names {name!r}, expected the name of a .safetensors file.")
    if not names:
        raise BuildError(f"{INDEX} names no tensor of a vision tower. Use a checkpoint with one.")
    return sorted(names)


def adapter_error(adapter: bytes, name: str) -> BuildError:
    """What to tell someone who gave the LoRA adapter `name` with this `adapter_config.json`."""
    try:
        base = json.loads(adapter)["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError):
        base = None
    of = f" for {base}" if base else ""
    return BuildError(f"{name} is a LoRA adapter{of}, expected a whole model. {MERGE}")


MERGE = (
    "Merge it into its base with PEFT (`PeftModel.from_pretrained(base, adapter)"
    ".merge_and_unload().save_pretrained(directory)`) and build from that directory."
)


def _entries(shards: Mapping[str, Mapping[str, Tensor]]) -> Iterator[tuple[str, Piece]]:
    for file, entries in shards.items():
        for key, tensor in entries.items():
            yield key, Piece(file, tensor)


def _sizes(config: Mapping[str, Any], part: str, defaults: Mapping[str, int]) -> dict[str, int]:
    given = config.get(part) or {}
    found = {key: given.get(key, default) for key, default in defaults.items()}
    for key, value in found.items():
        if not isinstance(value, int) or value <= 0:
            raise BuildError(f"{CONFIG} has {part}.{key} = {value!r}; expected a positive number.")
    return found


def _linear(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str, size: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (size,), f"{name}.bias": (size,)}
