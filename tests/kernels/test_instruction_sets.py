"""The operators in C++, on one instruction set after another: attention_test.cc, linear_test.cc."""

import shutil
import subprocess
from pathlib import Path

import pytest

PROGRAMS = ("attention_test", "linear_test")
ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "sidecar" / "kernels"
QEMU = shutil.which("qemu-x86_64-static") or shutil.which("qemu-x86_64")
ARM_COMPILER = shutil.which("aarch64-linux-gnu-g++")
ARM_QEMU = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")

# Without `null`, whose checks would take GCC minutes; AddressSanitizer sees a null pointer too.
SANITISED = (
    "-DCMAKE_CXX_FLAGS=-O1 -fsanitize=address,undefined -fno-sanitize=null "
    "-fno-sanitize-recover=all "
    "-DVISION_KERNELS_TEST_VNNI"
)


def build(name: str, *options: str) -> list[Path]:
    """The test programs, built in .work; skips where there is no compiler to build them."""
    if not shutil.which("cmake"):
        pytest.skip("there is no cmake on this machine")
    work = ROOT / ".work" / f"kernels-{name}"
    configure = ["cmake", "-Wno-dev", "-S", str(SOURCE), "-B", str(work)]
    configure += options
    configured = subprocess.run(configure, capture_output=True, text=True, check=False)
    if configured.returncode != 0:
        reason = (configured.stderr.strip().splitlines() or ["no reason given"])[-1]
        pytest.skip(f"CMake cannot build the kernels here: {reason}")
    compile_ = ["cmake", "--build", str(work), "--target", "kernels_tests", "--parallel", "2"]
    built = subprocess.run(compile_, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr[-4000:]
    return [work / "tests" / name for name in PROGRAMS]


def run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def test_every_instruction_set_here_agrees_with_float64_and_stays_in_bounds() -> None:
    for program in build("sanitised", "-DCMAKE_BUILD_TYPE=Sanitised", SANITISED):
        run(program)


@pytest.mark.slow
def test_avx2_without_vnni_agrees_with_float64_on_an_emulated_haswell() -> None:
    if QEMU is None:
        pytest.skip("there is no qemu-x86_64 (Debian: qemu-user-static)")
    attention, linear = build("haswell")
    assert "AVX2 " in run(QEMU, "-cpu", "Haswell", attention, "AVX2")
    assert run(QEMU, "-cpu", "Haswell", linear) == ""  # not served: it would be no faster


@pytest.mark.slow
def test_neon_agrees_with_float64_on_an_emulated_arm() -> None:
    if ARM_COMPILER is None or ARM_QEMU is None:
        pytest.skip("there is no aarch64 compiler or no qemu-aarch64")
    programs = build(
        "aarch64",
        "-DCMAKE_SYSTEM_NAME=Linux",
        "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
        f"-DCMAKE_CXX_COMPILER={ARM_COMPILER}",
        "-DCMAKE_CXX_FLAGS=-static -DVISION_KERNELS_TEST_NEON",
    )
    for program in programs:
        assert "NEON" in run(ARM_QEMU, "-cpu", "max", program)
