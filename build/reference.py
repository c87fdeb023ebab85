"""The vision encoder in PyTorch, as Transformers computes it: the truth that we compare with.

Only the model lives here. What it is loaded from was checked when the checkpoint was read.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import Gemma3Config, SiglipVisionModel
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm

from build.artifacts import CONFIG, WEIGHTS, Projection
from sidecar.manifest import GRID, TOKENS

TOWER = "vision_tower."
LAYERS = "vision_tower.encoder.layers."
WEIGHT = "multi_modal_projector.mm_input_projection_weight"
NORM = "multi_modal_projector.mm_soft_emb_norm.weight"


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
        projected = self.pool(patches, rows, columns) @ self.projection
        return projected, scores(projected), projected.mean(dim=1)

    def pool(self, patches: Tensor, rows: int, columns: int) -> Tensor:
        """[n, rows * columns, vision_hidden] to the 256 tokens that are projected."""
        down, across = rows // GRID, columns // GRID
        blocks = patches.reshape(-1, GRID, down, GRID, across, patches.shape[-1])
        tokens = blocks.mean(dim=(2, 4)).reshape(-1, TOKENS, patches.shape[-1])
        if self.norm is not None:
            tokens = self.norm(tokens)
        return tokens


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
    half: bool = False,
    attention: str = "sdpa",
    stored_layers: bool = False,
) -> VisionEncoderWrapper:
    """Build the encoder in FP32 from the artefact CHECKPOINT.

    `half` rounds the weights to FP16 first; `attention` is one of Transformers' implementations.
    `stored_layers` leaves the encoder layers as they are stored, to be used one by one: in FP32
    they take gigabytes.
    """
    tensors = load_file(checkpoint / WEIGHTS)
    if half:
        tensors = {name: tensor.half() for name, tensor in tensors.items()}
    tensors = {
        name: tensor if stored_layers and name.startswith(LAYERS) else tensor.float()
        for name, tensor in tensors.items()
    }
    config = Gemma3Config.from_dict(json.loads((checkpoint / CONFIG).read_text("utf-8")))
    vision = config.vision_config
    vision.vision_use_head = False
    vision._attn_implementation = attention
    with torch.device("meta"):
        tower = SiglipVisionModel(vision)
    inside = {
        name.removeprefix(TOWER): tensor
        for name, tensor in tensors.items()
        if name.startswith(TOWER)
    }
    tower.load_state_dict(inside, assign=True)
    positions = tower.embeddings.position_embedding.num_embeddings
    tower.embeddings.position_ids = torch.arange(positions)[None]
    norm = None
    if projection == "projector":
        norm = Gemma3RMSNorm(vision.hidden_size, eps=vision.layer_norm_eps)
        norm.weight = nn.Parameter(tensors[NORM])
    return VisionEncoderWrapper(tower, norm, tensors[WEIGHT]).eval().requires_grad_(False)
