"""ONNX graphs: small edits, stable names, and the same bytes for the same model.

Knows nothing of quantisation or of this model; only what any lowering needs of onnx_ir.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

INLINE = 256  # bytes; larger tensors are stored beside the graph


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


def save_sharing(model: ir.Model, path: Path, owner: Path) -> None:
    """Write the graph over the tensors of `owner`, a graph in the same directory.

    Each stored tensor of `model` must be one of `owner`'s by name, with the same values.
    """
    shared = ir.load(owner).graph.initializers
    for name, value in model.graph.initializers.items():
        tensor = shared[name].const_value
        if not np.array_equal(tensor.numpy(), value.const_value.numpy()):
            raise ValueError(f"{path.name} and {owner.name} differ in {name}.")
        value.const_value = tensor
    number_values(model)
    ir.save(model, path)  # tensors stay where they are


def number_values(model: ir.Model) -> None:
    """Name what passes between nodes by numbers: names of nodes say where one is, and are long."""
    values = (value for node in model.graph for value in node.outputs)
    for number, value in enumerate(value for value in values if not value.is_graph_output()):
        value.name = f"value {number}"


def insert_before(
    node: ir.Node,
    op: str,
    inputs: Sequence[ir.Value | None],
    name: str,
    attributes: dict[str, Any] | None = None,
    *,
    domain: str = "",
    outputs: int = 1,
) -> ir.Node:
    """A new node in front of `node`."""
    new = ir.node(op, inputs, attributes=attributes, domain=domain, num_outputs=outputs, name=name)
    node.graph.insert_before(node, new)
    return new


def initializer(model: ir.Model, name: str, array: NDArray[Any]) -> ir.Value:
    """The stored tensor of that name, added if the graph has none."""
    if name in model.graph.initializers:
        return model.graph.initializers[name]
    tensor = ir.tensor(np.ascontiguousarray(array), name=name)
    value = ir.Value(
        name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    model.graph.initializers[name] = value
    return value


def replace(model: ir.Model, last: ir.Node, result: ir.Value) -> None:
    """`result` takes the place of the one output of `last`; what nobody reads any more goes."""
    (old,) = last.outputs
    result.shape, result.type = old.shape, old.type
    if old.is_graph_output():  # its name is the contract's
        result.name, old.name = old.name, f"{old.name}.float"
    ir.convenience.replace_all_uses_with(old, result, replace_graph_outputs=True)
    unused = [last]
    while unused:
        node = unused.pop()
        inputs = [value for value in node.inputs if value is not None]
        model.graph.remove(node, safe=True)
        for value in inputs:
            if not value.uses():
                if value.is_initializer():
                    del model.graph.initializers[value.name]
                elif (producer := value.producer()) is not None and producer not in unused:
                    unused.append(producer)


def is_stored(value: ir.Value | None) -> bool:
    """Whether the graph holds its values: weights, biases, constants."""
    return value is not None and value.is_initializer()
