"""A model directory made in milliseconds, without torch: the real graph's inputs and outputs, and
arithmetic simple enough to check by hand. `slow` adds seconds of work, except at the smallest
resolution, where the golden input is run.

    python -m tests.stand_in DIR [--slow]
"""

import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from sidecar import manifest
from sidecar.manifest import GRID, Manifest, Normalisation

HIDDEN = 8
SIDES = (224, 448)
SLOW_SIDES = (112, 224, 448)
SLOW_FROM = 96  # pixels from the edges; only what lies beyond costs time
SLOW_NODES = 600
FLAT = 0.05  # the largest spread of norms that means nothing


def make(directory: Path, slow: bool = False, seed: int = 7) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    onnx.save(_graph(slow, seed), directory / "vision_encoder_quant.onnx")
    manifest.write(
        Manifest(
            model_id="tests/stand-in",
            revision="1",
            recipe="default",
            projection="linear",
            graph="vision_encoder_quant.onnx",
            patch_size=7 if slow else 14,
            vision_hidden=3,
            text_hidden=HIDDEN,
            default_resolution=SIDES[-1],
            resolutions=SLOW_SIDES if slow else SIDES,
            normalisation=Normalisation(),
            files=manifest.describe(directory, ["vision_encoder_quant.onnx"]),
            flat=dict.fromkeys(SLOW_SIDES if slow else SIDES, FLAT),
        ),
        directory,
    )
    return directory


def weight(seed: int = 7) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(3, HIDDEN)).astype(np.float32)


def _graph(slow: bool, seed: int) -> onnx.ModelProto:
    constants = {
        "grid": np.array([GRID, GRID], np.int64),
        "tokens": np.array([0, 3, GRID * GRID], np.int64),
        "weight": weight(seed),
        "last": np.array([-1], np.int64),
        "middle": np.array([1], np.int64),
        "tiny": np.array([1e-12], np.float32),
        "one": np.array(np.eye(3)[:, :, None, None], np.float32),
    }
    source = "pixel_values"
    nodes = []
    if slow:
        constants |= {
            "from": np.array([SLOW_FROM, SLOW_FROM], np.int64),
            "to": np.array([2**31, 2**31], np.int64),
            "sides": np.array([2, 3], np.int64),
            "kernel": np.zeros((3, 3, 9, 9), np.float32),
        }
        last = "slow"
        nodes.append(helper.make_node("Slice", [source, "from", "to", "sides"], [last]))
        for index in range(SLOW_NODES):
            nodes.append(helper.make_node("Conv", [last, "kernel"], [f"slow{index}"], pads=[4] * 4))
            last = f"slow{index}"
        nodes.append(helper.make_node("ReduceMean", [last, "sides"], ["nothing"]))
        nodes.append(helper.make_node("Add", [source, "nothing"], ["pixels"]))
        source = "pixels"
    nodes += [
        helper.make_node("Shape", [source], ["batch_and_channels"], end=2),
        helper.make_node("Concat", ["batch_and_channels", "grid"], ["sizes"], axis=0),
        helper.make_node("Resize", [source, "", "", "sizes"], ["small"], mode="nearest"),
        helper.make_node("Reshape", ["small", "tokens"], ["columns"]),
        helper.make_node("Transpose", ["columns"], ["rows"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["rows", "weight"], ["projected_embeddings"]),
        helper.make_node("ReduceL2", ["projected_embeddings", "last"], ["norms"], keepdims=0),
        helper.make_node("ReduceMin", ["norms", "last"], ["low"]),
        helper.make_node("ReduceMax", ["norms", "last"], ["high"]),
        helper.make_node("Sub", ["norms", "low"], ["above"]),
        helper.make_node("Sub", ["high", "low"], ["range"]),
        helper.make_node("Max", ["range", "tiny"], ["divisor"]),
        helper.make_node("Div", ["above", "divisor"], ["attention_scores"]),
        helper.make_node(
            "ReduceMean", ["projected_embeddings", "middle"], ["pooled_embedding"], keepdims=0
        ),
    ]
    tokens = GRID * GRID
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "stand_in",
        [value("pixel_values", TensorProto.FLOAT, ["batch", 3, "height", "width"])],
        [
            value("projected_embeddings", TensorProto.FLOAT, ["batch", tokens, HIDDEN]),
            value("attention_scores", TensorProto.FLOAT, ["batch", tokens]),
            value("pooled_embedding", TensorProto.FLOAT, ["batch", HIDDEN]),
        ],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


if __name__ == "__main__":
    make(Path(sys.argv[1]), slow="--slow" in sys.argv)
