"""The vision encoder in PyTorch, as Transformers computes it: the truth that we compare with."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import Gemma3Config, SiglipVisionConfig, SiglipVisionModel
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm

from build.checkpoint import PREPROCESSOR, WEIGHTS
from build.errors import BuildError
from build.tower import CONFIG
from sidecar.manifest import GRID, TOKENS, Normalisation

Projection = Literal["projector", "linear"]

TOWER = "vision_tower."
WEIGHT = "multi_modal_projector.mm_input_projection_weight"
NORM = "multi_modal_projector.mm_soft_emb_norm.weight"
RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}


@dataclass(frozen=True)
class Geometry:
    """What a checkpoint's configuration says of shapes and pixels."""

    vision: SiglipVisionConfig
    text_hidden: int
    normalisation: Normalisation

    @property
    def step(self) -> int:
        """Height and width are multiples of this: 16 patches."""
        return GRID * int(self.vision.patch_size)

    @property
    def native(self) -> int:
        return int(self.vision.image_size)

    @property
    def resolutions(self) -> tuple[int, ...]:
        return tuple(range(self.step, self.native + 1, self.step))


def geometry(checkpoint: Path) -> Geometry:
    """Read CONFIG and PREPROCESSOR. Raises BuildError."""
    content = json.loads((checkpoint / CONFIG).read_text("utf-8"))
    if content.get("model_type") != "gemma3" or "vision_config" not in content:
        raise BuildError(
            f"expected a Gemma 3 checkpoint with a vision tower, found a configuration of type "
            f"{content.get('model_type')!r}. MedGemma 4B and Gemma 3 4B, 12B and 27B have one."
        )
    config = Gemma3Config.from_dict(content)
    vision = config.vision_config
    vision.vision_use_head = False
    found = Geometry(vision, int(config.text_config.hidden_size), _normalisation(checkpoint))
    if config.mm_tokens_per_image != TOKENS or found.native % found.step:
        raise BuildError(
            f"expected {TOKENS} tokens an image and an image size that is a multiple of "
            f"{found.step}, found {config.mm_tokens_per_image} tokens and {found.native} pixels."
        )
    if vision.num_channels != 3:
        raise BuildError(f"expected images of 3 channels, found {vision.num_channels}.")
    return found


class VisionEncoderWrapper(nn.Module):
    """Tower, pooling to 16 x 16 tokens, projection and scores.

    `norm` None leaves out the projector's RMSNorm: the `linear` projection.
    """

    def __init__(self, tower: SiglipVisionModel, norm: nn.Module | None, weight: Tensor) -> None:
        super().__init__()
        self.tower = tower
        self.norm = norm
        self.projection = nn.Parameter(weight)  # [vision_hidden, text_hidden]

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[n, 3, h, w] to [n, 256, text_hidden], [n, 256] and [n, text_hidden]."""
        hidden = self.tower(pixel_values, interpolate_pos_encoding=True).last_hidden_state
        return self.project(hidden, *self.grid(pixel_values))

    def grid(self, pixel_values: Tensor) -> tuple[int, int]:
        """Patches down and across."""
        side = self.tower.config.patch_size
        return pixel_values.shape[2] // side, pixel_values.shape[3] // side

    def project(self, patches: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor, Tensor]:
        """[n, rows * columns, vision_hidden] to the three outputs."""
        down, across = rows // GRID, columns // GRID
        blocks = patches.reshape(-1, GRID, down, GRID, across, patches.shape[-1])
        tokens = blocks.mean(dim=(2, 4)).reshape(-1, TOKENS, patches.shape[-1])
        if self.norm is not None:
            tokens = self.norm(tokens)
        projected = tokens @ self.projection
        return projected, scores(projected), projected.mean(dim=1)


def scores(projected: Tensor) -> Tensor:
    """Per image, min-max of the L2 norm of each token; zeros where all are equal. [n, 256]

    Norms that differ by rounding alone count as equal: scaling would turn the noise into a picture.
    """
    norms = torch.linalg.vector_norm(projected, dim=-1)
    low, high = norms.amin(dim=1, keepdim=True), norms.amax(dim=1, keepdim=True)
    flat = high - low <= high * 1e-6
    span = torch.where(flat, torch.ones_like(high), high - low)
    return torch.where(flat, torch.zeros_like(norms), (norms - low) / span)


def load(
    checkpoint: Path,
    projection: Projection,
    *,
    weights: str = WEIGHTS,
    half: bool = False,
    attention: str = "sdpa",
) -> VisionEncoderWrapper:
    """Build the encoder in FP32 from what `Checkpoint` wrote; `half` rounds weights to FP16 first.

    Raises BuildError.
    """
    tensors = load_file(checkpoint / weights)
    if half:
        tensors = {name: tensor.half() for name, tensor in tensors.items()}
    tensors = {name: tensor.float() for name, tensor in tensors.items()}
    shape = geometry(checkpoint)
    config = shape.vision
    config._attn_implementation = attention
    with torch.device("meta"):
        tower = SiglipVisionModel(config)
    inside = {
        name.removeprefix(TOWER): tensor
        for name, tensor in tensors.items()
        if name.startswith(TOWER)
    }
    _check(tower, inside)
    tower.load_state_dict(inside, assign=True)
    positions = tower.embeddings.position_embedding.num_embeddings
    tower.embeddings.position_ids = torch.arange(positions)[None]
    for name in (WEIGHT, NORM)[: 2 if projection == "projector" else 1]:
        if name not in tensors:
            raise BuildError(f"the checkpoint lacks {name}, which the projection needs.")
    weight = tensors[WEIGHT]
    expected = (int(config.hidden_size), shape.text_hidden)
    if tuple(weight.shape) != expected:
        raise BuildError(f"expected {WEIGHT} of shape {expected}, found {tuple(weight.shape)}.")
    norm = None
    if projection == "projector":
        norm = Gemma3RMSNorm(config.hidden_size, eps=config.layer_norm_eps)
        norm.weight = nn.Parameter(tensors[NORM])
    return VisionEncoderWrapper(tower, norm, weight).eval().requires_grad_(False)


def _check(tower: nn.Module, found: dict[str, Tensor]) -> None:
    expected = {name: tuple(value.shape) for name, value in tower.state_dict().items()}
    missing = sorted(expected.keys() - found.keys())
    if missing:
        raise BuildError(
            f"the checkpoint lacks {len(missing)} of the vision tower's {len(expected)} tensors, "
            f"the first being {missing[0]}. Is it a merged or a full checkpoint?"
        )
    for name, shape in sorted(expected.items()):
        if tuple(found[name].shape) != shape:
            raise BuildError(
                f"expected {name} of shape {shape} as the configuration says, "
                f"found {tuple(found[name].shape)}."
            )
    strange = sorted(found.keys() - expected.keys())
    if strange:
        raise BuildError(f"the vision tower has a tensor that we do not know: {strange[0]}.")


def _normalisation(checkpoint: Path) -> Normalisation:
    path = checkpoint / PREPROCESSOR
    if not path.is_file():
        return Normalisation()
    content = json.loads(path.read_text("utf-8"))
    default = Normalisation()
    return Normalisation(
        mean=tuple(content.get("image_mean", default.mean)),
        std=tuple(content.get("image_std", default.std)),
        resample=RESAMPLE[content.get("resample", 2)],
        rescale=float(content.get("rescale_factor", default.rescale)),
    )
