"""PyTorch to ONNX: the float graph, with names that do not depend on the exporter's counters."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch.export import Dim

from build import ops
from build.calibrate import PLAN, ROUNDED
from build.checkpoint import PREPROCESSOR, SOURCE, WEIGHTS
from build.pipeline import carry
from build.reference import Geometry, Projection, VisionEncoderWrapper, geometry, load
from build.tower import CONFIG

GRAPH = "vision_encoder.onnx"
DATA = GRAPH + ".data"
OUTPUTS = ("projected_embeddings", "attention_scores", "pooled_embedding")
FLOAT_BYTES = "float_bytes.txt"  # the size of GRAPH and DATA, for the report
OPSET = 18
INLINE = 256  # bytes; larger tensors go into DATA


@dataclass(frozen=True)
class Export:
    """Writes GRAPH and DATA.

    `fused` uses the operators of `ops`, and leaves height and width dynamic. Otherwise the graph is
    what the exporter makes of plain PyTorch, at the native resolution.
    """

    projection: Projection = "projector"
    fused: bool = True
    half: bool = False  # round the weights to FP16 first, as the original recipe did
    weights: str = WEIGHTS

    def __call__(self, source: Path, out: Path) -> None:
        attention = ops.FUSED if self.fused else "eager"
        encoder = load(
            source, self.projection, weights=self.weights, half=self.half, attention=attention
        )
        shape = geometry(source)
        model = _export(encoder, shape, self.fused)
        name_nodes(model)
        save(model, out / GRAPH)
        size = (out / GRAPH).stat().st_size + (out / DATA).stat().st_size
        (out / FLOAT_BYTES).write_text(f"{size}\n")
        carry(source, out, PLAN, ROUNDED, WEIGHTS, CONFIG, PREPROCESSOR, SOURCE)


def save(model: ir.Model, path: Path) -> None:
    """Write the graph, and beside it all but its smallest tensors; the same model, the same bytes.

    Only what a session needs is kept: the exporter's notes hold paths of this machine.
    """
    model.metadata_props.clear()
    model.doc_string = None
    for graph in (model.graph, *model.graph.subgraphs()):
        graph.metadata_props.clear()
        graph.doc_string = None
        for node in graph:
            node.metadata_props.clear()
            node.doc_string = None
            for value in node.outputs:
                value.metadata_props.clear()
        for value in (*graph.inputs, *graph.initializers.values()):
            value.metadata_props.clear()
    model.producer_name = "vision-sidecar"
    model.producer_version = None
    number_values(model)
    ir.save(model, path, external_data=path.name + ".data", size_threshold_bytes=INLINE)


def number_values(model: ir.Model) -> None:
    """Call what passes between nodes by numbers: names of nodes say where one is, and are long."""
    values = (value for node in model.graph for value in node.outputs)
    for number, value in enumerate(value for value in values if not value.is_graph_output()):
        value.name = f"value {number}"


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
        ops.fuse_gelu(encoder.tower)
        ops.interpolate_positions(encoder.tower)
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
        ops.plain_positions(encoder.tower)
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
