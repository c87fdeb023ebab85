"""A crash leaves no dump behind, and strangers do not use up the descriptors."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.client import PATIENCE, ROOT, ZmqClient

pytestmark = pytest.mark.skipif(os.name != "posix", reason="POSIX limits")
linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux's /proc")


def limits(pid: int) -> dict[str, list[str]]:
    lines = Path(f"/proc/{pid}/limits").read_text("ascii").splitlines()
    return {line[:26].strip(): line[26:].split() for line in lines}


@linux
def test_the_limits_of_a_running_sidecar(model: Path) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, hard), hard))
    try:
        with ZmqClient(model) as sidecar:
            found = limits(sidecar.process.pid)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert found["Max core file size"][:2] == ["0", "0"]
    assert found["Max open files"][0] == found["Max open files"][1] == str(hard)


@linux
def test_a_crash_leaves_no_core_file_where_dumps_are_on(model: Path, tmp_path: Path) -> None:
    pattern = Path("/proc/sys/kernel/core_pattern").read_text("ascii").strip()
    if pattern.startswith(("/", "|")):
        pytest.skip("this system writes dumps elsewhere")
    code = (
        "import resource, os, sys\n"
        "_, hard = resource.getrlimit(resource.RLIMIT_CORE)\n"
        "resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))\n"
        "os.chdir(sys.argv[1])\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from sidecar import hardening\n"
        "if sys.argv[2] == 'ours': hardening.forbid_core_dumps()\n"
        "os.abort()\n"
    )
    for whose in ("ours", "theirs"):
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path), whose], check=False)
        assert done.returncode == -signal.SIGABRT
        cores = list(tmp_path.iterdir())
        if whose == "ours":
            assert cores == []
    if not cores:
        pytest.skip("no dump is written here, with or without us")


@linux
def test_no_handler_that_dumps_are_piped_to_gets_one() -> None:
    code = (
        "import ctypes; from sidecar import hardening\n"
        "hardening.forbid_core_dumps(); print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, timeout=PATIENCE
    )
    assert done.stdout == b"0\n"


@linux
def test_without_descriptors_a_start_says_so_and_blames_no_file(model: Path) -> None:
    code = (
        "import os, resource, runpy, sys\n"
        "from sidecar import hardening, __main__ as m\n"
        "import sidecar.terminal, sidecar.server\n"
        "read = m.manifest.read\n"
        "def full(directory):\n"
        "    held = []\n"
        "    try:\n"
        "        while True: held.append(os.open(os.devnull, os.O_RDONLY))\n"
        "    except OSError: pass\n"
        "    return read(directory)\n"
        "m.manifest.read = full\n"
        "hardening.allow_descriptors = lambda: resource.setrlimit(\n"
        "    resource.RLIMIT_NOFILE, (64, 64))\n"
        f"m.main(['verify', '--model', {str(model)!r}])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=False, capture_output=True, timeout=PATIENCE
    )
    assert done.returncode == 1
    assert done.stderr.startswith(b"resources.exhausted: ")
