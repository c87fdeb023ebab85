"""Where the time of an encode goes, by operator, and the share of this machine's peak it reaches.

    python -m bench.profile [--layers N] [--threads N]

The peak is measured on as many threads, before and after each graph, since a shared machine changes
its speed within minutes: the 8-bit instructions that our kernels use, on registers alone. Where
there are none, it is onnxruntime's own largest product of bytes.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import mean, median
from time import perf_counter
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from bench.figures import number, table
from bench.machine import describe
from build.artifacts import CUSTOM_OP_GRAPHS, plain_graph
from sidecar import custom_ops, priority
from sidecar.custom_ops import LIBRARY, CustomOpsUnavailable
from sidecar.session import onnxruntime, saturates  # type: ignore[attr-defined]

ROOT = Path(__file__).parents[1]
SIDE, RUNS = 896, 3
PEAK_SIDE = 2048  # of the square product of onnxruntime's
SMALLEST = 0.005  # of the time; operators that take less are summed up
LINEAR = ("Linear", "Mlp", "DynamicQuantizeMatMul", "MatMulIntegerToFloat", "MatMulInteger")
ATTENTION = ("Attention", "MultiHeadAttention")
HEAD = ("share of the peak", "T operations", "s", "T a second", "of the peak", "s to be gained")


def by_operator(events: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Seconds of a run by operator, the longest first, from onnxruntime's own trace.

    The first run does not count: it brings the weights into memory.
    """
    runs = [event for event in events if event["name"] == "model_run"]
    first = min(event["ts"] + event["dur"] for event in runs)
    total: Counter[str] = Counter()
    for event in events:
        node = event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
        if node and event["ts"] >= first:
            total[event["args"]["op_name"]] += event["dur"]
    return {name: spent / 1e6 / (len(runs) - 1) for name, spent in total.most_common()}


@dataclass(frozen=True)
class Share:
    """Of the peak: what one part of the work reaches, and what it would save at the peak itself."""

    name: str
    operations: float  # a product counts two
    seconds: float
    peak: float  # operations a second

    def row(self) -> list[str]:
        rate = self.operations / self.seconds
        saved = self.seconds - self.operations / self.peak
        tera = (self.operations / 1e12, self.seconds, rate / 1e12)
        return [self.name, *(number(x, 3) for x in tera), f"{rate / self.peak:.0%}", number(saved)]


def shares(
    operators: Mapping[str, float], whole: float, linear: float, attention: float, peak: float
) -> list[Share]:
    """Of the linear layers and attention, whoever computes them, and of the whole run."""
    parts = (("linear layers", LINEAR, linear), ("attention", ATTENTION, attention))
    found = [
        Share(title, work, sum(operators.get(name, 0) for name in names), peak)
        for title, names, work in parts
    ]
    return [*found, Share("the whole run", linear + attention, whole, peak)]


def work(layers: int, tokens: int, hidden: int, wide: int) -> tuple[float, float]:
    """Operations of all linear layers and of all attention in one image; a product counts two."""
    linear = 2.0 * tokens * (4 * hidden**2 + 2 * hidden * wide)
    attention = 4.0 * tokens**2 * hidden
    return layers * linear, layers * attention


def peak(threads: int) -> tuple[float, str]:
    """Operations a second at most, and of what. Builds `bench/kernels/peak.cc`."""
    measured = _output([str(program("peak")), str(threads)])
    if not measured:
        return largest_product(threads), "onnxruntime's MatMulInteger"
    variant, _, rest = measured.partition(": ")
    return float(rest.split()[0]), f"{variant} on registers"


@cache
def program(name: str) -> Path:
    """One of the programs in `bench/kernels`, built in `.work/kernels`."""
    spec = importlib.util.spec_from_file_location("make", LIBRARY.parent / "make.py")
    assert spec is not None
    assert spec.loader is not None
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    make.build(make.WORK / "bench.log.txt", name)
    path: Path = make.WORK / "bench" / name
    return path.with_suffix(".exe") if sys.platform == "win32" else path


def largest_product(threads: int) -> float:
    """Operations a second of onnxruntime's `MatMulInteger`, uint8 with int8."""
    shape = [PEAK_SIDE, PEAK_SIDE]
    random = np.random.default_rng(0)
    b = onnx.numpy_helper.from_array(random.integers(-9, 9, shape).astype(np.int8), "b")
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["a", "b"], ["y"])],
        "peak",
        [helper.make_tensor_value_info("a", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info("y", TensorProto.INT32, shape)],
        [b],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    session = _session(model.SerializeToString(), threads)
    a = random.integers(0, 9, shape).astype(np.uint8)
    return 2.0 * PEAK_SIDE**3 / _best(lambda: session.run(None, {"a": a}))


def one_node(
    domain: str, op: str, heads: int, width: int, threads: int
) -> "onnxruntime.InferenceSession":
    """An attention op of q, k and v, [batch, tokens, heads * width], as a graph of its own."""
    node = helper.make_node(
        op, ["q", "k", "v"], ["y"], domain=domain, num_heads=heads, scale=width**-0.5
    )
    values = [
        helper.make_tensor_value_info(
            name, TensorProto.FLOAT, ["batch", "tokens", f"width of {name}"]
        )
        for name in ("q", "k", "v", "y")
    ]
    graph = helper.make_graph([node], "one node", values[:3], values[3:])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(domain, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return _session(model.SerializeToString(), threads)


def profile(graph: Path, threads: int) -> tuple[dict[str, float], float]:
    """Seconds by operator, and of a whole run (median) without the profiler's own cost."""
    feed = {"pixel_values": np.zeros((1, 3, SIDE, SIDE), np.float32)}
    session = _session(str(graph), threads)
    session.run(None, feed)
    whole = []
    for _ in range(RUNS):
        begun = perf_counter()
        session.run(None, feed)
        whole.append(perf_counter() - begun)
    del session
    with tempfile.TemporaryDirectory() as scratch:
        session = _session(str(graph), threads, str(Path(scratch) / "trace"))
        for _ in range(1 + RUNS):
            session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text("utf-8"))
    return by_operator(events), median(whole)


def graphs(directory: Path) -> Iterator[tuple[str, Path]]:
    """Those that this machine can run, the fastest first."""
    for name, operators in CUSTOM_OP_GRAPHS.items():
        with suppress(CustomOpsUnavailable):
            custom_ops.variant(operators)
            yield f"our {' and '.join(operators)}", directory / name
    yield "onnxruntime's own operators", plain_graph(directory)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.profile", description=__doc__)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--threads", type=int, default=priority.physical_cores())
    asked = parser.parse_args()
    made = json.loads(_output([sys.executable, "-m", "bench.models", str(asked.layers), "default"]))
    model = Path(made["default"]["path"])
    machine = describe(asked.threads)
    print(f"{machine['cpu']}: {', '.join(map(str, machine['features']))}")  # type: ignore[call-overload]
    print(f"{asked.layers} layers, {asked.threads} threads, {machine['versions']}")
    linear, attention = work(asked.layers, (SIDE // 14) ** 2, 1152, 4304)
    for title, graph in graphs(model):
        before, of = peak(asked.threads)
        operators, whole = profile(graph, asked.threads)
        most = mean((before, peak(asked.threads)[0]))
        spent = sum(operators.values())
        print(f"\n## {title}: {whole:.3f} s; traced {spent:.3f} s\n")
        print(f"Peak: {most / 1e12:.3f} T operations a second, measured with {of}.\n")
        rows = [
            [name, number(seconds, 3), number(100 * seconds / spent, 1)]
            for name, seconds in operators.items()
            if seconds >= SMALLEST * spent
        ]
        small = [seconds for seconds in operators.values() if seconds < SMALLEST * spent]
        rest = [number(sum(small), 3), number(100 * sum(small) / spent, 1)]
        print(table(("operator", "s", "%"), [*rows, [f"{len(small)} others", *rest]]), "\n")
        print(table(HEAD, [x.row() for x in shares(operators, whole, linear, attention, most)]))
    return 0


def _session(graph: str | bytes, threads: int, trace: str = "") -> "onnxruntime.InferenceSession":
    """As the sidecar opens one, but for what it does not do: trace."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if saturates():
        options.add_session_config_entry("session.x64quantprecision", "1")
    if trace:
        options.enable_profiling = True
        options.profile_file_prefix = trace
    if LIBRARY.exists():
        options.register_custom_ops_library(str(LIBRARY))
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _best(run: Callable[[], list[NDArray[Any]]]) -> float:
    run()
    times = []
    for _ in range(5):
        begun = perf_counter()
        run()
        times.append(perf_counter() - begun)
    return min(times)


def _output(command: list[str]) -> str:
    return subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout


if __name__ == "__main__":
    sys.exit(main())
