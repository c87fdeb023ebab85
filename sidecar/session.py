"""The loaded graph: an array in, arrays out, and an end to a run from another thread.

The only file that imports onnxruntime, hence the seam where another engine would go in.
"""

import base64
import ctypes
import itertools
import os
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np

from sidecar.custom_ops import LIBRARY, CustomOpsUnavailable, library
from sidecar.errors import ModelInvalid, RequestCancelled, exhausted
from sidecar.job import OUTPUTS, FloatArray, PixelValues

# onnxruntime sends telemetry by default; only this variable, set before the import, stops it all.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnxruntime

if os.name == "nt":
    onnxruntime.disable_telemetry_events()
onnxruntime.set_default_logger_severity(4)  # errors reach us as exceptions

VERSIONS = {"onnxruntime": onnxruntime.__version__, "numpy": np.__version__}

_NUMBERS = itertools.count(1)


class Run:
    """The work on one request, a run of a session above all, which any thread may end."""

    def __init__(self) -> None:
        self.options = onnxruntime.RunOptions()
        # Hundreds of megabytes of scratch memory go back to the system after each image.
        self.options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        self.number = next(_NUMBERS)
        self.library: ctypes.CDLL | None = None  # where the graph has custom ops of ours
        self._lock = threading.Lock()
        self._on_terminate: list[Callable[[], None]] = []

    def on_terminate(self, callback: Callable[[], None]) -> None:
        """Call it once the run is terminated, from that thread; at once if the run is already."""
        with self._lock:
            self._on_terminate.append(callback)
            terminated = self.options.terminate
        if terminated:
            callback()

    def terminate(self) -> None:
        """End the run between two nodes, or within one of our custom ops; `Session.run` raises
        RequestCancelled.
        """
        with self._lock:
            self.options.terminate = True
            callbacks = list(self._on_terminate)
        if self.library is not None:
            self.library.vision_kernels_end(self.number)
        for callback in callbacks:
            callback()

    def check(self) -> None:
        """Raises RequestCancelled once `terminate` was called."""
        if self.options.terminate:
            raise RequestCancelled("the request was cancelled.")


class Session:
    """An ONNX graph with the inputs and outputs of a vision encoder.

    `threads` 0 means one per physical core of the machine. `custom_ops`: the graph has custom ops
    of ours. `kleidiai` False leaves out Arm's kernels of that name, which gave wrong numbers on
    some CPUs (onnxruntime#31569). Raises ModelInvalid if onnxruntime refuses the file,
    ResourcesExhausted, and CustomOpsUnavailable if the native library cannot be loaded.
    """

    def __init__(
        self, graph: Path, threads: int = 0, custom_ops: bool = False, kleidiai: bool = True
    ) -> None:
        self.library = library() if custom_ops else None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if not kleidiai:
            options.add_session_config_entry("mlas.disable_kleidiai", "1")
        if saturates():
            options.add_session_config_entry("session.x64quantprecision", "1")
        if custom_ops:
            try:
                options.register_custom_ops_library(str(LIBRARY))
            except Exception as error:
                raise CustomOpsUnavailable(f"onnxruntime does not load {LIBRARY.name}.") from error
        try:
            self._session = onnxruntime.InferenceSession(
                str(graph), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's exceptions share no base below Exception
            raise exhausted(error) or ModelInvalid(
                f"onnxruntime {onnxruntime.__version__} cannot load {graph.name}. Use the sidecar "
                "and the model directory that were released together."
            ) from error
        names = tuple(output.name for output in self._session.get_outputs())
        if names != OUTPUTS:
            raise ModelInvalid(
                f"{graph.name} has the outputs {', '.join(names)}; expected {', '.join(OUTPUTS)}."
            )

    def run(self, pixel_values: PixelValues, run: Run | None = None) -> dict[str, FloatArray]:
        """Run [n, 3, height, width] float32; the OUTPUTS by name. Raises RequestCancelled, and
        whatever onnxruntime raises where a node fails.
        """
        run = run or Run()
        run.library = self.library
        if self.library is not None:
            self.library.vision_kernels_begin(run.number)
        run.check()  # after `begin`: a `terminate` before that could not reach the custom ops
        try:
            arrays = self._session.run(OUTPUTS, {"pixel_values": pixel_values}, run.options)
        except Exception:
            run.check()
            raise
        return dict(zip(OUTPUTS, arrays, strict=True))


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
