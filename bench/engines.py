"""One engine in a process of its own: load, warm up, run, and say what it took.

    python -m bench.engines CONFIGURATION

The configuration is JSON: `engine`, `model` (as `models` found it), `options`, `threads`, `inputs`
(files of raw float32, [1, 3, side, side] each), `side`, `warmups`, `runs`, and `outputs` (a
directory for `0.projected_embeddings` and so on, raw float32 too, or null). The one line on stdout
is JSON: `load_s`, `seconds`, `peak_bytes` and `notes`.
"""

import json
import os
import resource
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

OUTPUTS = ("projected_embeddings", "attention_scores", "pooled_embedding")

Array = NDArray[np.float32]
Infer = Callable[[Array], list[Array]]  # pixel_values to the arrays of OUTPUTS
Notes = dict[str, str]
Engine = Callable[[Mapping[str, Any], Mapping[str, str], int], tuple[Infer, Notes]]


def with_onnxruntime(
    model: Mapping[str, Any], _: Mapping[str, str], threads: int
) -> tuple[Infer, Notes]:
    """A session as the documentation's first example opens it; only the threads do not spin."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(
        model["graph"], options, providers=["CPUExecutionProvider"]
    )
    return lambda pixels: session.run(OUTPUTS, {"pixel_values": pixels}), {}


def with_sidecar(
    model: Mapping[str, Any], options: Mapping[str, str], threads: int
) -> tuple[Infer, Notes]:
    """The session that we ship; `options` say `kernels`, as on the sidecar's command line."""
    from sidecar import engine, malloc, manifest
    from sidecar.model_files import ModelFiles

    malloc.return_large_blocks()  # as the program does
    directory = Path(model["path"])
    described = manifest.read(directory)
    with ModelFiles(directory, described) as files:
        session, choice = engine.select(files, threads, options["kernels"])
    kernels = choice.custom_ops

    def infer(pixels: Array) -> list[Array]:
        found = session.run(pixels)
        return [found[name] for name in OUTPUTS]

    return infer, {"kernels": f"{'on' if kernels.on else 'off'}: {kernels.why}"}


def with_torch(model: Mapping[str, Any], _: Mapping[str, str], threads: int) -> tuple[Infer, Notes]:
    """The float reference."""
    import torch

    from build.reference import load

    torch.set_num_threads(threads)
    encoder = load(Path(model["path"]), "projector")

    def infer(pixels: Array) -> list[Array]:
        with torch.inference_mode():
            return [tensor.numpy() for tensor in encoder(torch.from_numpy(pixels))]

    return infer, {}


def with_openvino(
    model: Mapping[str, Any], options: Mapping[str, str], threads: int
) -> tuple[Infer, Notes]:
    """`options` are OpenVINO's properties."""
    import openvino as ov

    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": str(threads), **options}
    compiled = ov.Core().compile_model(model["graph"], "CPU", settings)
    request = compiled.create_infer_request()

    def infer(pixels: Array) -> list[Array]:
        found = request.infer([pixels], share_inputs=True)
        return [np.array(found[name]) for name in OUTPUTS]

    return infer, {"precision": str(compiled.get_property("INFERENCE_PRECISION_HINT"))}


ENGINES: dict[str, Engine] = {
    "onnxruntime": with_onnxruntime,
    "sidecar": with_sidecar,
    "torch": with_torch,
    "openvino": with_openvino,
}


def main() -> None:
    asked = json.loads(sys.argv[1])
    stdout = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # a library's own words
    shape = (1, 3, asked["side"], asked["side"])
    inputs = [np.fromfile(path, np.float32).reshape(shape) for path in asked["inputs"]]
    begun = perf_counter()
    infer, notes = ENGINES[asked["engine"]](asked["model"], asked["options"], asked["threads"])
    load_s = perf_counter() - begun
    for _ in range(asked["warmups"]):
        for pixels in inputs:
            infer(pixels)
    seconds = []
    for _ in range(asked["runs"]):
        for index, pixels in enumerate(inputs):
            begun = perf_counter()
            found = infer(pixels)
            seconds.append(perf_counter() - begun)
            if asked["outputs"]:
                for name, array in zip(OUTPUTS, found, strict=True):
                    array.tofile(Path(asked["outputs"]) / f"{index}.{name}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    report = {
        "load_s": load_s,
        "seconds": seconds,
        "peak_bytes": peak if sys.platform == "darwin" else peak * 1024,
        "notes": notes,
    }
    print(json.dumps(report), file=stdout, flush=True)
    os._exit(0)  # some engines' threads take their time to end, or fail at it


if __name__ == "__main__":
    main()
