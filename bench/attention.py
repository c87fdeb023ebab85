# SPDX-License-Identifier: Apache-2.0
"""Attention alone, ours and others', at the size of one layer of MedGemma's vision tower.

    python -m bench.attention [--tokens N] [--threads N] [--rounds N]

All run in turn on random numbers [1, 16, tokens, 72] and as many threads; the fastest round of
each counts. On a busy machine the processor time, summed over the threads, says more. PyTorch uses
AMX for bfloat16 where the CPU has it; our kernels do not, and desktop CPUs have none.
ONEDNN_MAX_CPU_ISA=AVX512_CORE_VNNI holds its oneDNN to AVX512.
"""

import argparse
import os
import sys
from collections.abc import Callable
from functools import partial
from time import perf_counter, process_time

import numpy as np
import torch

from bench.figures import number, table
from bench.machine import describe
from bench.profile import one_node
from sidecar import custom_ops, priority

HEADS, WIDTH = 16, 72
Call = Callable[[], object]


def engines(tokens: int, threads: int) -> dict[str, Call]:
    """What can compute attention here, by name; each call is one layer's attention."""
    torch.set_num_threads(threads)
    random = np.random.default_rng(0)
    shape = (1, tokens, HEADS * WIDTH)
    arrays = {name: random.normal(size=shape).astype(np.float32) for name in "qkv"}
    found: dict[str, Call] = {}
    ops = {"onnxruntime, float32": ("com.microsoft", "MultiHeadAttention")}
    try:
        variant = custom_ops.variant(["Attention"])
        ops = {f"ours, int8 ({variant})": ("vision.sidecar", "Attention")} | ops
    except custom_ops.CustomOpsUnavailable as error:
        print(f"ours is left out: {error}")
    for name, (domain, op) in ops.items():
        session = one_node(domain, op, HEADS, WIDTH, threads)
        found[name] = partial(session.run, None, arrays)
    for name, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        q, k, v = (
            torch.from_numpy(array).view(1, tokens, HEADS, WIDTH).transpose(1, 2).to(dtype)
            for array in arrays.values()
        )
        attend = torch.nn.functional.scaled_dot_product_attention
        found[f"PyTorch, {name}"] = partial(attend, q, k, v)
    return found


def fastest(calls: dict[str, Call], rounds: int) -> dict[str, tuple[float, float]]:
    """Seconds and processor seconds by name, each of the fastest of so many rounds in turn."""
    times = dict.fromkeys(calls, (float("inf"), float("inf")))
    with torch.inference_mode():
        for call in calls.values():
            call()
        for _ in range(rounds):
            for name, call in calls.items():
                begun = perf_counter(), process_time()
                call()
                spent = perf_counter() - begun[0], process_time() - begun[1]
                times[name] = min(times[name][0], spent[0]), min(times[name][1], spent[1])
    return times


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.attention", description=__doc__)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=priority.physical_cores())
    parser.add_argument("--rounds", type=int, default=7)
    asked = parser.parse_args()
    machine = describe(asked.threads)
    print(f"{machine['cpu']}: {machine['features']}; torch {torch.__version__}")
    print(f"ONEDNN_MAX_CPU_ISA={os.environ.get('ONEDNN_MAX_CPU_ISA', '(not set)')}")
    times = fastest(engines(asked.tokens, asked.threads), asked.rounds)
    operations = 4.0 * asked.tokens**2 * HEADS * WIDTH
    rows = [
        [name, number(1e3 * time, 1), number(operations / time / 1e12), number(1e3 * processor, 1)]
        for name, (time, processor) in times.items()
    ]
    print(f"\n[1, {HEADS}, {asked.tokens}, {WIDTH}], {asked.threads} threads\n")
    print(table(("attention", "ms", "T operations a second", "processor ms"), rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
