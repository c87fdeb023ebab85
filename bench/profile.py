"""Where the time of an encode goes, by operator, and the share of this machine's peak it reaches.

    python -m bench.profile [--layers N] [--kernels auto|off]

Peaks are measured in the same run: onnxruntime's own largest products, float and 8-bit, on the same
threads.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from bench.figures import number, table
from bench.machine import describe
from build.kernels import best_graph
from sidecar import manifest, manners
from sidecar.session import KERNELS, onnxruntime

ROOT = Path(__file__).parents[1]
SIDE, RUNS = 896, 3
PEAK_SIDE = 2048  # of the square products that peaks are measured with


def by_operator(events: Iterable[Mapping[str, Any]], runs: int) -> dict[str, float]:
    """Seconds of a run by operator, the longest first, from onnxruntime's own trace."""
    total: Counter[str] = Counter()
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            total[event["args"]["op_name"]] += event["dur"]
    return {name: spent / 1e6 / runs for name, spent in total.most_common()}


def work(layers: int, tokens: int, hidden: int, wide: int) -> tuple[float, float]:
    """Operations of all linear layers and of all attention in one image; a product counts two."""
    linear = 2.0 * tokens * (4 * hidden**2 + 2 * hidden * wide)
    attention = 4.0 * tokens**2 * hidden
    return layers * linear, layers * attention


def peak(operator: str, threads: int) -> float:
    """Operations a second of onnxruntime's `MatMul` (float) or `MatMulInteger` (u8 × s8)."""  # noqa: RUF002
    integer = operator == "MatMulInteger"
    kinds = (np.uint8, np.int8) if integer else (np.float32, np.float32)
    shape = [PEAK_SIDE, PEAK_SIDE]
    random = np.random.default_rng(0)
    b = onnx.numpy_helper.from_array(random.integers(-9, 9, shape).astype(kinds[1]), "b")
    kind = TensorProto.UINT8 if integer else TensorProto.FLOAT
    result = TensorProto.INT32 if integer else TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node(operator, ["a", "b"], ["y"])],
        "peak",
        [helper.make_tensor_value_info("a", kind, shape)],
        [helper.make_tensor_value_info("y", result, shape)],
        [b],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    session = _session(model.SerializeToString(), threads)
    a = random.integers(0, 9, shape).astype(kinds[0])
    return 2.0 * PEAK_SIDE**3 / _best(lambda: session.run(None, {"a": a}))


def profile(directory: Path, threads: int, kernels: bool) -> tuple[dict[str, float], float]:
    """Seconds by operator, and of a whole run (median) without the profiler's own cost."""
    described = manifest.read(directory)
    graph = best_graph(directory)[0] if kernels else directory / described.graph
    feed = {"pixel_values": np.zeros((1, 3, SIDE, SIDE), np.float32)}
    session = _session(str(graph), threads, kernels)
    session.run(None, feed)
    whole = []
    for _ in range(RUNS):
        begun = perf_counter()
        session.run(None, feed)
        whole.append(perf_counter() - begun)
    del session
    with tempfile.TemporaryDirectory() as scratch:
        session = _session(str(graph), threads, kernels, str(Path(scratch) / "trace"))
        for _ in range(RUNS):
            session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text("utf-8"))
    return by_operator(events, RUNS), median(whole)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.profile", description=__doc__)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--threads", type=int, default=manners.cores())
    parser.add_argument("--kernels", choices=("auto", "off"), default="auto")
    asked = parser.parse_args()
    made = json.loads(_output("bench.models", str(asked.layers), "default"))["default"]
    directory = Path(made["path"])
    described = manifest.read(directory)
    kernels = asked.kernels == "auto" and bool(described.kernels) and KERNELS.exists()
    operators, whole = profile(directory, asked.threads, kernels)
    spent = sum(operators.values())
    machine = describe(asked.threads)
    print(f"{machine['cpu']}: {', '.join(map(str, machine['features']))}")  # type: ignore[call-overload]
    print(f"{asked.layers} layers, {asked.threads} threads, {machine['versions']}")
    print(f"kernels {'on' if kernels else 'off'}; a run takes {whole:.3f} s, traced {spent:.3f} s")
    rows = [
        [name, number(seconds, 3), number(100 * seconds / spent, 1)]
        for name, seconds in operators.items()
    ]
    print(table(("operator", "s", "%"), rows))
    linear, attention = work(asked.layers, (SIDE // 14) ** 2, 1152, 4304)
    for name, title in (("MatMul", "float"), ("MatMulInteger", "8-bit")):
        rate = peak(name, asked.threads)
        share = (linear + attention) / whole / rate
        print(f"peak, {title}: {rate / 1e12:.2f} TOPS; the whole run reaches {share:.0%} of it")
    print(f"work: {linear / 1e12:.2f} T in linear layers, {attention / 1e12:.2f} T in attention")
    return 0


def _session(
    graph: str | bytes, threads: int, kernels: bool = False, trace: str = ""
) -> "onnxruntime.InferenceSession":
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if trace:
        options.enable_profiling = True
        options.profile_file_prefix = trace
    if kernels:
        options.register_custom_ops_library(str(KERNELS))
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _best(run: Callable[[], list[NDArray[Any]]]) -> float:
    run()
    times = []
    for _ in range(5):
        begun = perf_counter()
        run()
        times.append(perf_counter() - begun)
    return min(times)


def _output(module: str, *arguments: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout


if __name__ == "__main__":
    sys.exit(main())
