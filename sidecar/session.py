"""The loaded graph: an array in, arrays out, and an end to a run from another thread.

The only file that imports onnxruntime, hence the seam where another engine would go in.
"""

import base64
import ctypes
import itertools
import os
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sidecar.errors import ModelInvalid, RequestCancelled

# onnxruntime sends telemetry by default; only this variable, set before the import, stops it all.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnxruntime

if os.name == "nt":
    onnxruntime.disable_telemetry_events()
onnxruntime.set_default_logger_severity(4)  # errors reach us as exceptions

VERSIONS = {"onnxruntime": onnxruntime.__version__, "numpy": np.__version__}

# Our own operators for onnxruntime; built by sidecar/kernels/make.py, and not on every machine.
_SUFFIX = {"win32": "dll", "darwin": "dylib"}.get(sys.platform, "so")
KERNELS = Path(__file__).parent / "kernels" / f"vision_kernels.{_SUFFIX}"

OUTPUTS = ("projected_embeddings", "attention_scores", "pooled_embedding")

Array = NDArray[np.float32]


_NUMBERS = itertools.count(1)


class KernelsMissing(Exception):
    """Our own operators are not to be had on this machine; the message is a sentence for people."""


class Run:
    """One run of a session, which any thread may end."""

    def __init__(self) -> None:
        self.options = onnxruntime.RunOptions()
        # Hundreds of megabytes of scratch memory go back to the system after each image.
        self.options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        self.number = next(_NUMBERS)
        self.kernels: ctypes.CDLL | None = None  # where operators of ours take part

    def terminate(self) -> None:
        """End the run between two nodes, or within one of ours; `Session.run` raises
        RequestCancelled.
        """
        self.options.terminate = True
        if self.kernels is not None:
            self.kernels.vision_kernels_end(self.number)

    def check(self) -> None:
        """Raises RequestCancelled once `terminate` was called."""
        if self.options.terminate:
            raise RequestCancelled("the request was cancelled.")


class Session:
    """An ONNX graph with the inputs and outputs of a vision encoder.

    Raises ModelInvalid if onnxruntime refuses the file. `threads` 0 means one per physical core.
    `kernels`: the graph has operators of ours; raises KernelsMissing if they cannot be loaded.
    """

    def __init__(self, graph: Path, threads: int = 0, kernels: bool = False) -> None:
        self.kernels = _library() if kernels else None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if saturates():
            options.add_session_config_entry("session.x64quantprecision", "1")
        if kernels:
            try:
                options.register_custom_ops_library(str(KERNELS))
            except Exception as error:
                raise KernelsMissing(f"onnxruntime does not load {KERNELS.name}.") from error
        try:
            self._session = onnxruntime.InferenceSession(
                str(graph), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's exceptions share no base below Exception
            raise ModelInvalid(
                f"onnxruntime {onnxruntime.__version__} cannot load {graph.name}. Use the sidecar "
                "and the model directory that were released together."
            ) from error
        names = tuple(output.name for output in self._session.get_outputs())
        if names != OUTPUTS:
            raise ModelInvalid(
                f"{graph.name} has the outputs {', '.join(names)}; expected {', '.join(OUTPUTS)}."
            )

    def run(self, pixel_values: Array, run: Run | None = None) -> dict[str, Array]:
        """Run [n, 3, height, width]; the three outputs by name. Raises RequestCancelled."""
        run = run or Run()
        run.kernels = self.kernels
        if self.kernels is not None:
            self.kernels.vision_kernels_begin(run.number)
        run.check()  # after that: who ended the run before had nothing to tell them yet
        try:
            arrays = self._session.run(OUTPUTS, {"pixel_values": pixel_values}, run.options)
        except Exception:
            run.check()
            raise
        return dict(zip(OUTPUTS, arrays, strict=True))


def kernels_variant(operators: Iterable[str]) -> str:
    """The instruction set with which these operators of ours would run on this CPU.

    Raises KernelsMissing where one of them would not.
    """
    library = _library()
    variant = b""
    for operator in operators:
        variant = library.vision_kernels_variant(operator.encode())
        if not variant:
            raise KernelsMissing(f"this CPU has no instructions that make {operator} faster.")
    return variant.decode()


def kernels_peak(rounds: int) -> int:
    """Multiply registers, so many rounds long; how many operations that was. For benchmarks."""
    operations: int = _library().vision_kernels_peak(rounds)
    return operations


def _library() -> ctypes.CDLL:
    if not KERNELS.exists():
        raise KernelsMissing("they were not built for this machine.")
    try:
        library = ctypes.CDLL(str(KERNELS))
        library.vision_kernels_variant.argtypes = [ctypes.c_char_p]
        library.vision_kernels_variant.restype = ctypes.c_char_p
        library.vision_kernels_peak.argtypes = [ctypes.c_uint64]
        library.vision_kernels_peak.restype = ctypes.c_uint64
        for function in (library.vision_kernels_begin, library.vision_kernels_end):
            function.argtypes, function.restype = (ctypes.c_uint64,), None
    except (OSError, AttributeError) as error:
        raise KernelsMissing(f"{KERNELS.name} cannot be loaded on this machine.") from error
    return library


# MatMulInteger of A (uint8 [1, 64]) with B (int8 [64, 1]), opset 18, as a serialised ModelProto.
_PROBE = base64.b64decode(
    "CAgSADpgChgKAUEKAUISAVkiDU1hdE11bEludGVnZXISBXByb2JlWhMKAUESDgoMCAISCAoCCAEKAghAWhMKAUIS"
    "DgoMCAMSCAoCCEAKAggBYhMKAVkSDgoMCAYSCAoCCAEKAggBQgQKABAS"
)


@cache
def saturates() -> bool:
    """Whether this CPU's product of uint8 with int8 overflows 16 bits on the way, as on plain AVX2.

    CPUs with VNNI add up in 32 bits. The others need `session.x64quantprecision`, which would slow
    down those with VNNI by a third, so the machine itself is asked.
    """
    session = onnxruntime.InferenceSession(_PROBE, providers=["CPUExecutionProvider"])
    a = np.full((1, 64), 255, np.uint8)
    b = np.full((64, 1), 127, np.int8)
    [[product]] = session.run(None, {"A": a, "B": b})[0]
    return bool(product != 255 * 127 * 64)
