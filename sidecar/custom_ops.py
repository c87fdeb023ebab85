"""The native library of our custom ops: where it is, and which instruction set it would use.

It knows nothing of onnxruntime; `session.py` registers the library with it. The library is built by
sidecar/kernels/make.py, and not every machine has it.
"""

import ctypes
import sys
from collections.abc import Iterable
from pathlib import Path

_SUFFIX = {"win32": "dll", "darwin": "dylib"}.get(sys.platform, "so")
LIBRARY = Path(__file__).parent / "kernels" / f"vision_kernels.{_SUFFIX}"


class CustomOpsUnavailable(Exception):
    """Our custom ops cannot run on this machine; the message is a sentence for people."""


def library() -> ctypes.CDLL:
    """Load the library. Raises CustomOpsUnavailable."""
    if not LIBRARY.exists():
        raise CustomOpsUnavailable("they were not built for this machine.")
    try:
        loaded = ctypes.CDLL(str(LIBRARY))
        loaded.vision_kernels_variant.argtypes = [ctypes.c_char_p]
        loaded.vision_kernels_variant.restype = ctypes.c_char_p
        for function in (loaded.vision_kernels_begin, loaded.vision_kernels_end):
            function.argtypes, function.restype = (ctypes.c_uint64,), None
    except (OSError, AttributeError) as error:
        raise CustomOpsUnavailable(f"{LIBRARY.name} cannot be loaded on this machine.") from error
    return loaded


def variant(operators: Iterable[str]) -> str:
    """The instruction set that these custom ops would use on this CPU, such as `AVX512 and VNNI`.

    Raises CustomOpsUnavailable where the CPU gains nothing by one of them.
    """
    loaded = library()
    name = b""
    for operator in operators:
        name = loaded.vision_kernels_variant(operator.encode())
        if not name:
            raise CustomOpsUnavailable(f"this CPU has no instructions that make {operator} faster.")
    return name.decode()
