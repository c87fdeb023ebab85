"""How the process lives and dies: with its parent, at a signal, in every state.

No test asserts how long it takes, which a busy machine decides; `make soak` measures that.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

from tests import client, stand_in
from tests.client import PATIENCE, ROOT, Client, StdioClient, ZmqClient
from tests.sidecar.test_encode import PAGE, picture

posix = pytest.mark.skipif(os.name != "posix", reason="POSIX signals and descriptors")

RGB = {"rgb": picture()}


def serve(model: Path, **options: Any) -> subprocess.Popen[bytes]:
    settings: dict[str, Any] = {
        "stdin": subprocess.PIPE,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.DEVNULL,
    }
    words = [*client.command(), "serve", "--model", str(model)]
    return subprocess.Popen(words, cwd=ROOT, **(settings | options))


def hello_line(**changes: Any) -> bytes:
    key = zmq.curve_keypair()[0].decode()
    return json.dumps({"protocol": [1, 1], "client_public_key": key} | changes).encode() + b"\n"


def answer(line: bytes, model: Path) -> tuple[dict[str, Any], int]:
    """The one event that a parent gets that opens with `line` and no more, and the exit code."""
    process = serve(model)
    out, _ = process.communicate(line, timeout=PATIENCE)
    return json.loads(out.splitlines()[0]), process.returncode


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"", "handshake.malformed"),
        (b"hello\n", "handshake.malformed"),
        (b"x" * 5000, "handshake.malformed"),
        (hello_line(protocol=[2, 4]), "protocol.version"),
    ],
    ids=["end of file", "text", "a line too long", "later versions"],
)
def test_it_does_not_listen_for_a_parent_that_opens_with(
    line: bytes, code: str, model: Path
) -> None:
    event, exit_code = answer(line, model)
    assert event["event"] == "fatal"
    assert event["code"] == code
    assert exit_code != 0


@pytest.mark.parametrize("mode", ["serve", "stdio"])
def test_a_model_that_is_invalid_is_fatal_with_the_file_named(mode: str, tmp_path: Path) -> None:
    model = stand_in.make(tmp_path / "model")
    graph = model / "vision_encoder_quant.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"\xff")
    if mode == "serve":
        sidecar = serve(model)
        assert sidecar.stdin is not None
        assert sidecar.stdout is not None
        sidecar.stdin.write(hello_line())
        sidecar.stdin.flush()
        assert json.loads(sidecar.stdout.readline())["event"] == "listening"
        event = json.loads(sidecar.stdout.readline())
        assert (event["event"], event["code"]) == ("fatal", "model.invalid")
        assert graph.name in event["message"]
        assert sidecar.wait(PATIENCE) != 0
    else:
        done = client.run_cli("stdio", "--model", model, input="")
        assert done.returncode != 0
        assert f"model.invalid: {graph.name}" in done.stderr


def test_hello_and_stats_answer_while_the_model_loads_and_encode_says_so(tmp_path: Path) -> None:
    with loading(tmp_path) as sidecar:
        assert sidecar.ask("hello").header["state"] == "loading"
        assert sidecar.ask("stats").header["state"] == "loading"
        refused = sidecar.ask("encode", RGB)
        assert refused.code == "model.loading"
        assert refused.header["error"]["retryable"] is True


@contextlib.contextmanager
def loading(tmp_path: Path) -> Any:
    """A sidecar that stays `loading` for seconds: its model is gigabytes of zeros to be hashed."""
    model = stand_in.make(tmp_path / "model")
    with (model / "weights.bin").open("wb") as weights:
        weights.truncate(8 * 2**30)  # a hole: it takes no disk
    content = json.loads((model / "manifest.json").read_text("utf-8"))
    content["files"]["weights.bin"] = {"bytes": 8 * 2**30, "sha256": "0" * 64}
    (model / "manifest.json").write_text(json.dumps(content), "utf-8")
    with ZmqClient(model, ready=False) as sidecar:
        yield sidecar


def start_loading(tmp_path: Path, _model: Path, _slow: Path) -> Any:
    return loading(tmp_path)


@contextlib.contextmanager
def busy(_tmp_path: Path, _model: Path, slow_model: Path) -> Any:
    with ZmqClient(slow_model) as sidecar:
        for _ in range(3):
            sidecar.submit("encode", RGB)
        while sidecar.ask("stats").header["queue"]["requests"] < 3:
            pass
        yield sidecar


@contextlib.contextmanager
def idle(_tmp_path: Path, model: Path, _slow: Path) -> Any:
    with ZmqClient(model) as sidecar:
        yield sidecar


STATES = {"loading": start_loading, "idle": idle, "busy": busy}
State = Callable[[Path, Path, Path], Any]


@pytest.mark.parametrize("state", STATES.values(), ids=STATES)
def test_end_of_file_on_stdin_ends_it_when(
    state: State, tmp_path: Path, model: Path, slow_model: Path
) -> None:
    with state(tmp_path, model, slow_model) as sidecar:
        sidecar.process.stdin.close()
        assert sidecar.process.wait(PATIENCE) == 0  # the model that loads would end it with 1


@pytest.mark.parametrize("state", STATES.values(), ids=STATES)
def test_shutdown_ends_it_with_everything_answered_when(
    state: State, tmp_path: Path, model: Path, slow_model: Path
) -> None:
    with state(tmp_path, model, slow_model) as sidecar:
        pending = {1, 2, 3} if state is busy else set()
        assert sidecar.ask("shutdown").ok
        for id in pending:
            assert sidecar.reply(id).code == "request.cancelled"
        assert sidecar.process.wait(PATIENCE) == 0


@posix
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("state", STATES.values(), ids=STATES)
def test_a_signal_ends_it_with_everything_answered_when(
    state: State, number: int, tmp_path: Path, model: Path, slow_model: Path
) -> None:
    with state(tmp_path, model, slow_model) as sidecar:
        sidecar.process.send_signal(number)
        if state is busy:
            for id in (1, 2, 3):
                assert sidecar.reply(id).code == "request.cancelled"
        assert sidecar.process.wait(PATIENCE) == 0


@posix
def test_sigterm_ends_stdio_with_everything_answered(slow_model: Path) -> None:
    with StdioClient(slow_model) as sidecar:
        assert sidecar.ask("hello").ok
        ids = [sidecar.submit("encode", RGB) for _ in range(3)]
        sidecar.ask("hello")
        sidecar.process.send_signal(signal.SIGTERM)
        assert [sidecar.reply(id).code for id in ids] == ["request.cancelled"] * 3
        assert sidecar.process.wait(PATIENCE) == 0


@posix
def test_sigterm_ends_it_even_while_it_waits_for_its_first_line(model: Path) -> None:
    process = serve(model)
    time.sleep(0.1)
    process.terminate()
    process.wait(PATIENCE)


@posix
def test_when_the_parent_is_killed_nobody_survives(slow_model: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-m", "tests.sidecar.parent", str(slow_model)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    end = time.monotonic() + PATIENCE
    while alive(child) and time.monotonic() < end:
        time.sleep(0.01)
    assert not alive(child)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"  # gone, but not yet asked after


def test_the_end_of_stdios_input_lets_it_finish_what_it_accepted(model: Path) -> None:
    with StdioClient(model) as sidecar:
        ids = [sidecar.submit("encode", RGB) for _ in range(5)]
        sidecar.process.stdin.close()  # type: ignore[union-attr]
        assert [sidecar.reply(id).code for id in ids] == ["ok"] * 5
        assert sidecar.process.wait(PATIENCE) == 0


@pytest.mark.parametrize(
    "tail",
    [
        b"\x01",
        b"\x01\x00\x00\x00",
        b"\x01\x00\x00\x00\x05\x00",
        b"\x01\x00\x00\x00\x05\x00\x00\x00abc",
        b"\xff\xff\xff\xff",
        b"\x01\x00\x00\x00\xff\xff\xff\xffabc",
    ],
    ids=["a count", "a length", "half a length", "a frame", "frames", "4 GiB"],
)
def test_an_input_that_ends_within_a_message_is_answered_and_ends_it(
    tail: bytes, model: Path
) -> None:
    with StdioClient(model) as sidecar:
        id = sidecar.submit("encode", RGB)
        sidecar.process.stdin.write(tail)  # type: ignore[union-attr]
        sidecar.process.stdin.close()  # type: ignore[union-attr]
        assert sidecar.reply(id).ok
        assert sidecar.reply(None).code in ("request.malformed", "request.too_large")
        assert sidecar.process.wait(PATIENCE) == 0


def test_a_message_that_is_too_large_for_stdio_is_skipped_and_the_next_one_read(
    model: Path,
) -> None:
    with StdioClient(model) as sidecar:
        sidecar.send([b"", bytes(200 * 2**20)])
        assert sidecar.reply(None).code == "request.too_large"
        sidecar.send([])
        assert sidecar.reply(None).code == "request.malformed"
        sidecar.send([b"x"] * 1000)
        assert sidecar.reply(None).code == "request.malformed"
        assert sidecar.ask("hello").ok


@posix
def test_stdio_ends_when_nobody_reads_its_answers(slow_model: Path) -> None:
    process = subprocess.Popen(
        [*client.command(), "stdio", "--model", str(slow_model)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdout.close()
    process.stdin.write(client.packed(client.message("encode", 1, RGB)))
    process.stdin.write(client.packed(client.message("hello", 2)))
    process.stdin.flush()
    assert process.wait(PATIENCE) == 0
    process.stdin.close()


@posix
def test_a_full_stderr_stops_nothing(model: Path) -> None:
    unread, stderr = os.pipe()
    with ZmqClient(model, stderr=stderr) as sidecar:
        os.close(stderr)
        for _ in range(1500):
            sidecar.submit("hello")
        assert all(sidecar.next().ok for _ in range(1500))
        assert sidecar.ask("encode", RGB).ok
        assert sidecar.ask("shutdown").ok
        assert sidecar.process.wait(PATIENCE) == 0
    os.close(unread)


@posix
@pytest.mark.parametrize("when", ["before", "while"])
def test_a_closed_stderr_stops_nothing(when: str, model: Path) -> None:
    unread, stderr = os.pipe()
    if when == "before":
        os.close(unread)
    with ZmqClient(model, stderr=stderr) as sidecar:
        os.close(stderr)
        sidecar.ask("hello")
        if when == "while":
            os.close(unread)
        assert sidecar.ask("encode", RGB).ok
        assert sidecar.ask("shutdown").ok
        assert sidecar.process.wait(PATIENCE) == 0


@posix
@pytest.mark.parametrize("closed", [[2], [1], [0], [0, 1, 2]], ids=str)
def test_descriptors_that_were_never_open_do_no_harm(
    closed: list[int], model: Path, tmp_path: Path
) -> None:
    words = ["encode", str(PAGE), "--model", str(model), "--out", str(tmp_path)]
    redirect = " ".join(f"{number}>&-" for number in closed)
    done = subprocess.run(
        ["sh", "-c", f'"$@" {redirect}', "sh", *client.command(), *words],
        cwd=ROOT,
        check=False,
        timeout=PATIENCE,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "ecg.npz").exists()


def test_a_library_that_prints_does_not_break_the_protocol(model: Path, tmp_path: Path) -> None:
    if os.environ.get("VISION_SIDECAR"):
        pytest.skip("a bundle loads no module of ours")
    (tmp_path / "chatty.py").write_text("import os; os.write(1, b'hello from C')")
    code = (
        "import runpy, sys; from sidecar import encoder, __main__ as m; import os\n"
        "load = encoder.load\n"
        "def loud(*a):\n    os.write(1, b'noise'); print('noise'); return load(*a)\n"
        "encoder.load = loud\n"
        f"m.main(['stdio', '--model', {str(model)!r}])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        check=False,
        timeout=PATIENCE,
        input=client.packed(client.message("shutdown", 1)),
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert b"noise" not in done.stdout
    assert b"noise" in done.stderr


def test_cancel_answers_a_queued_and_a_running_request_once(
    transport: type[Client], slow_model: Path
) -> None:
    with transport(slow_model) as sidecar:
        running, queued = sidecar.submit("encode", RGB), sidecar.submit("encode", RGB)
        sidecar.ask("hello")
        for id in (queued, running):
            cancel = sidecar.submit("cancel", params={"target": id})
            assert sidecar.reply(id).code == "request.cancelled"
            assert sidecar.reply(cancel).header["cancelled"] is True
        assert sidecar.ask("cancel", params={"target": running}).header["cancelled"] is False
        assert sidecar.ask("cancel", params={"target": 12345}).header["cancelled"] is False
        # The run has wound down, and the worker is free, long before it would have finished.
        last = sidecar.submit("encode", RGB)
        sidecar.ask("cancel", params={"target": last})
        assert sidecar.ask("stats").header["counts"]["encode"] == {"request.cancelled": 3}


def test_an_id_in_flight_is_refused_and_the_first_one_still_answered(
    transport: type[Client], slow_model: Path
) -> None:
    with transport(slow_model) as sidecar:
        id = sidecar.submit("encode", RGB)
        for op in ("encode", "hello"):
            sidecar.submit(op, RGB if op == "encode" else None, id=id)
            refused = sidecar.reply(None)
            assert refused.code == "request.duplicate_id"
            assert refused.header["error"]["duplicate_of"] == id
        sidecar.ask("cancel", params={"target": id})
        assert sidecar.reply(id).code == "request.cancelled"


def test_the_id_of_a_cancelled_request_may_be_used_again(
    transport: type[Client], slow_model: Path
) -> None:
    with transport(slow_model) as sidecar:
        sidecar.submit("encode", RGB, id=500)
        sidecar.ask("hello")
        sidecar.ask("cancel", params={"target": 500})
        assert sidecar.reply(500).code == "request.cancelled"
        again = {"rgb": np.zeros((3, 3, 3), np.uint8)}
        sidecar.submit("encode", again, {"resolution": 5}, id=500)  # quick, and never "cancelled"
        assert sidecar.reply(500).code == "tensor.shape"


def test_beyond_its_bound_the_queue_is_busy_at_once(
    transport: type[Client], slow_model: Path
) -> None:
    with transport(slow_model, "--max-queue", "2") as sidecar:
        accepted = [sidecar.submit("encode", RGB) for _ in range(2)]
        refused = [sidecar.ask("encode", RGB) for _ in range(20)]
        assert {reply.code for reply in refused} == {"busy"}
        assert all(reply.header["error"]["retryable"] for reply in refused)
        for id in accepted:
            sidecar.ask("cancel", params={"target": id})
            assert sidecar.reply(id).code == "request.cancelled"


def test_the_bound_on_bytes_counts_batches_by_their_size(
    transport: type[Client], slow_model: Path
) -> None:
    one = {"pixel_values": np.zeros((1, 3, 224, 224), np.float32)}
    three = {"pixel_values": np.zeros((3, 3, 224, 224), np.float32)}
    with transport(slow_model, "--max-queue-bytes", "1500000") as sidecar:
        assert sidecar.ask("hello").header["limits"]["max_queue_bytes"] == 1_500_000
        refused = sidecar.ask("encode", three)  # never: it is larger than the whole queue
        assert (refused.code, refused.header["error"]["retryable"]) == ("request.too_large", False)
        first, second = sidecar.submit("encode", one), sidecar.submit("encode", one)
        assert sidecar.ask("encode", one).code == "busy"
        for id in (first, second):
            sidecar.ask("cancel", params={"target": id})
            assert sidecar.reply(id).code == "request.cancelled"
