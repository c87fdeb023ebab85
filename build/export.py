"""PyTorch to ONNX: the float graph, with names that do not depend on the exporter's counters.

In place of operations that ONNX decomposes into slow or large pieces it has contrib operators of
ONNX Runtime: its fused attention never holds the matrix of all scores, and its GELU is one pass
over memory. They exist only while exporting; PyTorch cannot run them. Nothing is quantised here.
"""

import gc
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import onnx_ir as ir
import torch
from onnxscript.rewriter import rewrite
from torch import Tensor, nn
from torch.export import Dim
from transformers import AttentionInterface, SiglipVisionModel
from transformers.activations import GELUActivation, GELUTanh

from build import graph
from build.artifacts import FLOAT, Artifact, Geometry, Inputs, Projection, read_geometry
from build.reference import VisionEncoderWrapper, load
from sidecar.job import OUTPUTS

OPSET = 18
FUSED = "onnxruntime_fused"
CONTRIB = "com.microsoft"
GELUS: dict[type[nn.Module], str] = {GELUTanh: "FastGelu", GELUActivation: "Gelu"}


@dataclass(frozen=True)
class Export:
    """Reads CHECKPOINT, writes FLOAT_GRAPH.

    `fused` uses the operators of `ops`, and leaves height and width dynamic. Otherwise the graph is
    what the exporter makes of plain PyTorch, at the native resolution.
    """

    projection: Projection = "projector"
    fused: bool = True
    half: bool = False  # round the weights to FP16 first, as the original recipe did

    reads: ClassVar = (Artifact.CHECKPOINT,)
    writes: ClassVar = Artifact.FLOAT_GRAPH

    def __call__(self, inputs: Inputs, out: Path) -> None:
        graph.save(self._model(inputs[Artifact.CHECKPOINT]), out / FLOAT)
        forget()

    def _model(self, checkpoint: Path) -> ir.Model:
        attention = FUSED if self.fused else "eager"
        encoder = load(checkpoint, self.projection, half=self.half, attention=attention)
        model = _export(encoder, read_geometry(checkpoint), self.fused)
        name_nodes(model)
        return model


def forget() -> None:
    """Let go of the exported model: onnxscript's rewrite rules keep the last graph that they saw.

    With its weights, which are gigabytes. So the rules are given a graph of one node.
    """
    x = ir.Value(name="x")
    node = ir.node("Identity", [x])
    small = ir.Graph([x], node.outputs, nodes=[node], opset_imports={"": OPSET})
    rewrite(ir.Model(small, ir_version=10))
    gc.collect()


def name_nodes(model: ir.Model) -> None:
    """Call each node after the module it comes from, and each weight after its parameter."""
    taken: dict[str, int] = {}
    for node in model.graph:
        base = f"{_scope(node)}/{node.op_type}"
        count = taken[base] = taken.get(base, -1) + 1
        node.name = base if count == 0 else f"{base}_{count}"
    for node in model.graph:
        for position, value in enumerate(node.inputs):
            if value is not None and value.is_initializer() and value.name.startswith("val_"):
                weight = node.op_type == "MatMul"
                name = f"{_scope(node)}.weight" if weight else f"{node.name}.{position}"
                if name not in model.graph.initializers:
                    value.name = name


def _scope(node: ir.Node) -> str:
    """`tower.encoder.layers.3.mlp.fc1`, or `encoder` for what belongs to no inner module."""
    scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes", "")
    names = [part.strip(" '\"") for part in scopes.strip("[]").split(",")]
    modules = [name for name in names[:-1] if name and not name.startswith("_")]
    return modules[-1] if modules else "encoder"


def _export(encoder: VisionEncoderWrapper, shape: Geometry, fused: bool) -> ir.Model:
    native = shape.native
    batch = Dim("batch", min=1, max=1024)
    if fused:
        fuse_gelu(encoder.tower)
        interpolate_positions(encoder.tower)
        side = native // shape.step
        dynamic: dict[int, Any] = {0: batch}
        if side > 1:
            dynamic[2] = shape.step * Dim("rows", min=1, max=side)
            dynamic[3] = shape.step * Dim("columns", min=1, max=side)
            # Not one row or column of blocks: the exporter takes a 1 for a constant.
            example = torch.zeros(2, 3, native, shape.step * max(2, side - 1))
        else:
            example = torch.zeros(2, 3, native, native)
    else:
        plain_positions(encoder.tower)
        dynamic = {0: batch}
        example = torch.zeros(2, 3, native, native)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            encoder,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=["pixel_values"],
            output_names=list(OUTPUTS),
            dynamic_shapes=(dynamic,),
            verbose=False,
        )
    assert program is not None
    model: ir.Model = program.model
    return model


class Gelu(nn.Module):
    """FastGelu is the tanh approximation, Gelu the exact one."""

    def __init__(self, operator: str) -> None:
        super().__init__()
        self.operator = operator

    def forward(self, x: Tensor) -> Tensor:
        return torch.onnx.ops.symbolic(
            f"{CONTRIB}::{self.operator}", (x,), dtype=x.dtype, shape=x.shape, version=1
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
        f"{CONTRIB}::MultiHeadAttention",
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
