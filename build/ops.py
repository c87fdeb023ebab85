"""What is exported in place of operations that ONNX decomposes into slow or large pieces.

Contrib operators of ONNX Runtime: its fused attention never holds the matrix of all scores, and
its GELU is one pass over memory. They exist only while exporting; PyTorch cannot run them.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, SiglipVisionModel
from transformers.activations import GELUActivation, GELUTanh

FUSED = "onnxruntime_fused"
DOMAIN = "com.microsoft"
GELUS: dict[type[nn.Module], str] = {GELUTanh: "FastGelu", GELUActivation: "Gelu"}


class Gelu(nn.Module):
    """FastGelu is the tanh approximation, Gelu the exact one."""

    def __init__(self, operator: str) -> None:
        super().__init__()
        self.operator = operator

    def forward(self, x: Tensor) -> Tensor:
        return torch.onnx.ops.symbolic(
            f"{DOMAIN}::{self.operator}", (x,), dtype=x.dtype, shape=x.shape, version=1
        )


def attention(
    _module: nn.Module,
    query: Tensor,  # [n, heads, tokens, size]
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **_: Any,
) -> tuple[Tensor, None]:
    """Transformers' attention interface, as one com.microsoft::MultiHeadAttention."""
    if attention_mask is not None:
        raise NotImplementedError("a vision tower has no attention mask")
    heads = query.shape[1]
    flat = [x.transpose(1, 2).flatten(2) for x in (query, key, value)]
    joined = torch.onnx.ops.symbolic(
        f"{DOMAIN}::MultiHeadAttention",
        flat,
        attrs={"num_heads": heads, "scale": scaling},
        dtype=query.dtype,
        shape=flat[0].shape,
        version=1,
    )
    return joined.unflatten(2, (heads, -1)), None


def fuse_gelu(tower: SiglipVisionModel) -> None:
    """Replace every GELU of the tower; another activation is left as it is."""
    for module in tower.modules():
        activation = getattr(module, "activation_fn", None)
        if isinstance(activation, nn.Module) and type(activation) in GELUS:
            module.activation_fn = Gelu(GELUS[type(activation)])


def interpolate_positions(tower: SiglipVisionModel) -> None:
    """Interpolate the positions at every size, as Transformers does at all but the native one.

    At the native one that gives the positions themselves; without a special case for it, one graph
    serves all sizes.
    """
    embeddings = tower.embeddings
    side = tower.config.image_size // tower.config.patch_size
    patch = tower.config.patch_size

    def interpolate(_: Tensor, height: int, width: int) -> Tensor:
        grid = embeddings.position_embedding.weight.T.reshape(1, -1, side, side)
        size = (height // patch, width // patch)
        resized = nn.functional.interpolate(grid, size=size, mode="bicubic", align_corners=False)
        return resized.flatten(2).transpose(1, 2)

    embeddings.interpolate_pos_encoding = interpolate


def plain_positions(tower: SiglipVisionModel) -> None:
    """Look the positions up, as Transformers does at the native size."""
    embeddings = tower.embeddings
    embeddings.interpolate_pos_encoding = lambda *_: embeddings.position_embedding(
        embeddings.position_ids
    )


AttentionInterface.register(FUSED, attention)
