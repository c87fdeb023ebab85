"""What a Gemma 3 checkpoint holds of the vision tower and the projector: names, shapes, bytes.

Knows the layouts that Transformers has written, what `config.json` promises, and the safetensors
format by its header alone: a little-endian u64 length, that many bytes of JSON, then the tensors'
bytes (https://github.com/huggingface/safetensors#format). It never looks at a weight.
"""

import json
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from build.artifacts import BuildError
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

PREFIX = 8  # bytes of the header's length
LONGEST = 100_000_000  # the format's own limit on a header
CHUNK = 1 << 22  # bytes held in memory at once; a multiple of every type's width
FLOATS = {"F16": 2, "BF16": 2, "F32": 4}  # the types that a checkpoint's weights come in: bytes


@dataclass(frozen=True, slots=True)
class Tensor:
    """Where one tensor lies; `start` and `stop` count from the beginning of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start


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
    model_type = config.get("model_type") if isinstance(config, dict) else None
    if model_type == f"{ARCHITECTURE}_text":
        raise BuildError(
            f"{name} is a {model_type} model, which has no vision tower; expected {ARCHITECTURE}, "
            "such as MedGemma 4B. Choose a checkpoint that takes images."
        )
    if not isinstance(config, dict) or model_type != ARCHITECTURE:
        named = ", ".join(map(str, config.get("architectures") or ())) if model_type else ""
        what = (
            f"{model_type} model{f' ({named})' if named else ''}"
            if model_type
            else "model of no known type"
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
    vision, text = sizes(config)
    text_hidden = text["hidden_size"]
    hidden, wide = vision["hidden_size"], vision["intermediate_size"]
    patch, image = vision["patch_size"], vision["image_size"]
    if image % (GRID * patch):
        raise BuildError(
            f"{CONFIG} has images of {image} pixels in patches of {patch}; expected a multiple of "
            f"{GRID * patch}, so that they pool to {GRID} x {GRID} tokens."
        )
    if vision["num_channels"] != 3:
        raise BuildError(
            f"{CONFIG} has images of {vision['num_channels']} channels; expected 3. Choose a "
            "checkpoint that takes RGB images."
        )
    tokens = config.get("mm_tokens_per_image", TOKENS)
    if tokens != TOKENS:
        raise BuildError(f"{CONFIG} has {tokens} tokens per image; expected {TOKENS}.")
    expected: dict[str, tuple[int, ...]] = {
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
            expected |= _linear(f"{layer}.self_attn.{projection}", hidden, hidden)
        expected |= _linear(f"{layer}.mlp.fc1", hidden, wide)
        expected |= _linear(f"{layer}.mlp.fc2", wide, hidden)
        expected |= _norm(f"{layer}.layer_norm1", hidden) | _norm(f"{layer}.layer_norm2", hidden)
    return expected


def sizes(config: Mapping[str, Any]) -> tuple[dict[str, int], dict[str, int]]:
    """What `config` says of the vision tower and of the language model. Raises BuildError."""
    return (
        _sizes(config, "vision_config", VISION_DEFAULTS),
        _sizes(config, "text_config", TEXT_DEFAULTS),
    )


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
    pieces: dict[str, Piece] = {}
    for key, piece in _entries(shards):
        name = canonical(key)
        if name is None:
            continue
        if ".lora_" in name or ".base_layer." in name:
            raise BuildError(f"the checkpoint holds LoRA weights unmerged ({key}). {MERGE}")
        if name in pieces:
            raise BuildError(
                f"the checkpoint holds {name} twice, in {pieces[name].file} and {piece.file}. "
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
        pieces[name] = piece
    for name in sorted(expected.keys() - pieces.keys()):
        raise BuildError(
            f"the checkpoint lacks {name} with shape {list(expected[name])}, which {CONFIG} asks "
            "for. Download or copy the whole checkpoint, or save it again with its vision tower."
        )
    return dict(sorted(pieces.items()))


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


def header_size(prefix: bytes, file: str) -> int:
    """Where the tensors' bytes begin, as the first PREFIX bytes tell. Raises BuildError."""
    if len(prefix) < PREFIX:
        raise corrupt(file, f"it has {len(prefix)} bytes")
    (length,) = struct.unpack("<Q", prefix)
    if not 2 <= length <= LONGEST:
        raise corrupt(file, f"its header claims to be {length} bytes long")
    return PREFIX + int(length)


def parse(text: bytes, size: int | None, file: str) -> dict[str, Tensor]:
    """Read the JSON part of the header of a file of `size` bytes, if known. Raises BuildError."""
    try:
        content = json.loads(text)
        content.pop("__metadata__", None)
        base = PREFIX + len(text)
        tensors = {str(name): _tensor(entry, base) for name, entry in content.items()}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise corrupt(file, "its header is not that of a safetensors file") from error
    end = max((tensor.stop for tensor in tensors.values()), default=base)
    if size not in (end, None):
        raise corrupt(file, f"its header promises {end} bytes, it has {size}")
    for name, tensor in tensors.items():
        width = FLOATS.get(tensor.dtype)
        if width is not None and tensor.size != width * prod(tensor.shape):
            raise corrupt(file, f"{name} does not have the size that its shape gives")
    return tensors


def read_header(path: Path) -> dict[str, Tensor]:
    """Read the header of a file on disk and nothing else of it. Raises BuildError."""
    with path.open("rb") as stream:
        base = header_size(stream.read(PREFIX), named(path))
        text = stream.read(base - PREFIX)
    size = path.stat().st_size
    if base > size:
        raise corrupt(named(path), f"it ends inside its header, after {size} bytes")
    return parse(text, size, named(path))


def read(path: Path, start: int, stop: int) -> Iterator[bytes]:
    """The bytes from `start` to `stop`, at most CHUNK of them at once. Raises BuildError."""
    with path.open("rb") as stream:
        stream.seek(start)
        while start < stop:
            chunk = stream.read(min(CHUNK, stop - start))
            if not chunk:
                raise corrupt(named(path), f"it ends after {start} bytes")
            start += len(chunk)
            yield chunk


def header(tensors: Mapping[str, Tensor]) -> bytes:
    """The first bytes of a new file in which the tensors' bytes follow in the mapping's order."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in tensors.items():
        span = (offset, offset + tensor.size)
        entries[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": span}
        offset += tensor.size
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors' bytes are aligned
    return struct.pack("<Q", len(text)) + text


def named(path: Path) -> str:
    """The file as people know it, and where its bytes are: the hub's cache holds links to them."""
    return f"{path.name} at {path.resolve()}"


def corrupt(file: str, what: str) -> BuildError:
    """The error for a file whose bytes contradict each other."""
    return BuildError(
        f"{file} is cut short or corrupt: {what}. Delete it, and download or copy it again."
    )


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
    section = config.get(part) or {}
    sizes = {key: section.get(key, default) for key, default in defaults.items()}
    for key, value in sizes.items():
        if not isinstance(value, int) or value <= 0:
            raise BuildError(f"{CONFIG} has {part}.{key} = {value!r}; expected a positive number.")
    return sizes


def _linear(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str, size: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (size,), f"{name}.bias": (size,)}


def _tensor(entry: object, base: int) -> Tensor:
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(start), int(stop)]}:
            sizes = tuple(size for size in shape if isinstance(size, int) and size >= 0)
            if len(sizes) == len(shape) and 0 <= start <= stop:
                return Tensor(dtype, sizes, base + start, base + stop)
    raise ValueError("not a tensor's entry")
