# SPDX-License-Identifier: Apache-2.0
"""What one more instruction costs beside int8 dot products on this CPU, in dot products.

    python -m bench.port_pressure

Generates a C++ program (GCC or Clang, x86 only), compiles and runs it. 0 means that the
instruction is free beside dot products, 1 that it takes the place of one. "Dense" is one per dot
product, "sparse" one per three. The fastest of many short runs counts, so that other programs
matter little.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.figures import table
from bench.machine import describe

ROOT = Path(__file__).parents[1]
WORK = ROOT / ".work" / "port-pressure"
DOTS = 12  # of one loop: enough for each sum to be ready when its turn comes again


@dataclass(frozen=True)
class Registers:
    """The dot product of one width, and the registers that an instruction beside it may use."""

    title: str
    flag: str  # of /proc/cpuinfo
    prefix: str  # of the dot product in assembly
    name: str  # zmm or ymm
    inputs: tuple[int, int]
    outputs: tuple[int, ...]

    def register(self, number: int) -> str:
        return f"%%{self.name}{number}"


WIDE = Registers("AVX512 with VNNI", "avx512_vnni", "", "zmm", (30, 31), tuple(range(16, 28)))
NARROW = Registers("AVX2 with VNNI", "avx_vnni", "%{vex%} ", "ymm", (14, 15), (12, 13))

# {a} and {b} are inputs, {o} the output; {m} is memory.
INSTRUCTIONS = {
    "float: add, max, convert, multiply": (
        "vaddps {a},{b},{o}",
        "vmaxps {a},{b},{o}",
        "vcvtdq2ps {a},{o}",
        "vmulps {a},{b},{o}",
    ),
    "16 bits: add, max, saturating subtract": (
        "vpaddw {a},{b},{o}",
        "vpmaxsw {a},{b},{o}",
        "vpsubusw {a},{b},{o}",
    ),
    "16 bits: multiply": ("vpmulhrsw {a},{b},{o}", "vpmulhuw {a},{b},{o}"),
    "logic": ("vpxor{d} {a},{b},{o}",),
    "shift by a constant, by a vector": ("vpsrlw $3,{a},{o}", "vpsravd {a},{b},{o}"),
    "pack, sum of 8 bytes": ("vpackssdw {a},{b},{o}", "vpsadbw {a},{b},{o}"),
    "load, broadcast from memory": ("{mov} ({m}),{o}", "vpbroadcastd ({m}),{o}"),
    "store": ("{mov} {a},64({m})",),
    "AVX512: shift words by a vector, permute words": (
        "vpsrlvw {a},{b},{o}",
        "vpermw {a},{b},{o}",
    ),
}


def instructions(registers: Registers) -> Iterator[tuple[str, str]]:
    """Names and templates of those that these registers have."""
    wide = registers is WIDE
    for group, templates in INSTRUCTIONS.items():
        if group.startswith("AVX512") and not wide:
            continue
        for template in templates:
            concrete = template.replace("{d}", "d" if wide else "")
            concrete = concrete.replace("{mov}", "vmovdqa64" if wide else "vmovdqa")
            yield concrete.split(" ")[0] + (" (store)" if "64({m})" in concrete else ""), concrete


def body(registers: Registers, template: str | None, every: int) -> str:
    """DOTS dot products, with an instruction after each of every so many."""
    a, b = (registers.register(number) for number in registers.inputs)
    lines = []
    for i in range(DOTS):
        lines.append(f"{registers.prefix}vpdpbusd {a},{b},{registers.register(i)}")
        if template is not None and i % every == 0:
            output = registers.register(registers.outputs[i % len(registers.outputs)])
            lines.append(template.format(a=a, b=b, o=output, m="%0"))
    return "\\n".join(lines)


def program(registers: Registers) -> str:
    clobbered = ",".join(f'"xmm{number}"' for number in range(28 if registers is WIDE else 14))
    a, b = (registers.register(number).replace("%%", "%") for number in registers.inputs)
    zero = "vpxord" if registers is WIDE else "vpxor"
    loops, entries = [], []
    cases = [("", body(registers, None, 1))]
    for name, template in instructions(registers):
        cases += [(name, body(registers, template, every)) for every in (1, 3)]
    for number, (name, text) in enumerate(cases):
        loops.append(
            f"static void Loop{number}(long n) {{ for (long i = 0; i < n; ++i) "
            f'asm volatile("{text}" :: "r"(memory) : "memory", {clobbered}); }}'
        )
        entries.append(f'{{"{name}", Loop{number}}}')
    return f"""
#include <algorithm>
#include <chrono>
#include <cstdio>
alignas(64) static char memory[4096];
{chr(10).join(loops)}
static struct {{ const char* name; void (*loop)(long); double best = 1e9; }} cases[] = {{
  {", ".join(entries)}}};
int main() {{
  asm volatile("{zero} {a},{a},{a}\\n{zero} {b},{b},{b}");
  for (int round = 0; round < 200; ++round) {{
    for (auto& one : cases) {{
      const auto begin = std::chrono::steady_clock::now();
      one.loop(2000);
      const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - begin;
      one.best = std::min(one.best, spent.count());
    }}
  }}
  for (const auto& one : cases) printf("%s\\t%g\\n", one.name, {DOTS} * one.best / cases[0].best);
}}
"""


def measure(registers: Registers) -> list[list[str]]:
    """A row for each instruction: its cost in dot products when dense and when sparse."""
    WORK.mkdir(parents=True, exist_ok=True)
    source, binary = WORK / f"{registers.name}.cc", WORK / registers.name
    source.write_text(program(registers), "utf-8")
    compiler = os.environ.get("CXX") or shutil.which("g++") or "c++"
    options = ["-O2", "-std=c++17", "-march=native"]
    subprocess.run([compiler, *options, str(source), "-o", str(binary)], check=True)
    output = subprocess.run([str(binary)], capture_output=True, text=True, check=True).stdout
    lines = [line.split("\t") for line in output.splitlines()][1:]
    rows = []
    for (name, dense), (_, sparse) in zip(lines[::2], lines[1::2], strict=True):
        costs = (float(dense) - DOTS) / DOTS, (float(sparse) - DOTS) / (DOTS / 3)
        rows.append([f"`{name}`", *(f"{max(cost, 0):.1f}" for cost in costs)])
    return rows


def main() -> int:
    machine = describe(1)
    features = str(machine["features"])
    print(f"{machine['cpu']}: {features}")
    flags = Path("/proc/cpuinfo").read_text("utf-8").split() if sys.platform == "linux" else []
    for registers in (WIDE, NARROW):
        if registers.flag in flags:
            print(f"\n{registers.title}\n")
            print(table(("instruction", "dense", "sparse"), measure(registers)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
