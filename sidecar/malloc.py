"""What the C library does with memory that is freed."""

import ctypes
import sys

M_MMAP_THRESHOLD = -3  # glibc's <malloc.h>
LARGE = 1 << 20  # bytes


def return_large_blocks() -> None:
    """Let every large block go back to the system once it is freed; for the whole process.

    glibc does so for blocks above a threshold, but raises it, to as much as 32 MB, to the largest
    block that was freed so far. From then on what onnxruntime frees stays in the heap, between
    blocks that are still in use: after a model of MedGemma's size was loaded, twice its own memory.
    Other C libraries have no such call, and are left as they are.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(M_MMAP_THRESHOLD, LARGE)
