"""Freed memory goes back to the system, also what lies below memory that is still in use."""

import platform
import subprocess
import sys

import pytest

# A freed block of 16 MB raises glibc's threshold; then 64 MB in blocks below it, each with one that
# stays behind it, and is too large for the gaps that a program's start leaves in the heap.
PROGRAM = """
import ctypes, re, sys
from sidecar import malloc

def held():
    with open("/proc/self/status") as status:
        return int(re.search(r"RssAnon:\\s*(\\d+) kB", status.read())[1]) << 10

c = ctypes.CDLL(None)
c.malloc.restype, c.free.argtypes = ctypes.c_void_p, (ctypes.c_void_p,)
if sys.argv[1] == "returned":
    malloc.return_large_blocks()
c.free(c.malloc(16 << 20))
blocks = []
for _ in range(32):
    blocks.append(c.malloc(2 << 20))
    ctypes.memset(blocks[-1], 1, 2 << 20)
    c.malloc(512 << 10)
full = held()
for block in blocks:
    c.free(block)
print(full - held())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_large_blocks_go_back_to_the_system() -> None:
    freed = {
        how: int(
            subprocess.run(
                [sys.executable, "-c", PROGRAM, how], capture_output=True, check=True, text=True
            ).stdout
        )
        for how in ("kept", "returned")
    }
    assert freed["returned"] > 60 << 20, freed
    assert freed["kept"] < 4 << 20, freed  # else this test shows nothing
