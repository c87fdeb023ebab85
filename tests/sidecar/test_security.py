"""Who gets in, what a bad guest can do, and what leaves the machine or enters a log: nothing."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zmq

from tests import client, stand_in
from tests.client import PATIENCE, ROOT, ZmqClient, message
from tests.sidecar.test_encode import picture, png

linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
RGB = {"rgb": picture()}


@pytest.fixture(scope="module")
def served(model: Path) -> Iterator[ZmqClient]:
    with ZmqClient(model) as running:
        yield running


def answered(stranger: zmq.Socket[bytes], seconds: float) -> bool:
    stranger.send_multipart(message("hello", 1))
    return bool(stranger.poll(int(seconds * 1e3)))


def test_the_pinned_key_is_let_in(served: ZmqClient) -> None:
    assert answered(served.connect(), PATIENCE)


@pytest.mark.parametrize("who", ["no CURVE", "wrong server key", "unpinned client key"])
def test_nobody_else_reaches_a_handler(who: str, served: ZmqClient) -> None:
    before = served.ask("stats").header["counts"]
    public, secret = zmq.curve_keypair()
    stranger = {
        "no CURVE": lambda: served.connect(curve=False),
        "wrong server key": lambda: served.connect(server=public),
        "unpinned client key": lambda: served.connect(public, secret),
    }[who]()
    assert not answered(stranger, 0.5)
    stranger.close()
    assert served.ask("stats").header["counts"] == before | {
        "stats": {"ok": before.get("stats", {"ok": 0})["ok"] + 1}
    }


def test_noise_on_the_port_disturbs_nobody(served: ZmqClient) -> None:
    host, port = served.listening["endpoint"].removeprefix("tcp://").split(":")
    assert host == "127.0.0.1"
    noise = np.random.default_rng(0)
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00CURVE" + bytes(15) + b"\x00" + bytes(31)
    guests = []
    for index in range(40):
        guest = socket.create_connection((host, int(port)))
        start = (b"", b"GET / HTTP/1.1\r\n\r\n", greeting, greeting[:20])[index % 4]
        guest.sendall(start + noise.bytes(index * 50))
        guests.append(guest)
    assert served.ask("encode", RGB).ok
    for guest in guests:
        guest.close()
    assert served.ask("encode", RGB).ok


@linux
def test_it_listens_on_loopback_only(served: ZmqClient) -> None:
    port = int(served.listening["endpoint"].rpartition(":")[2])
    listening = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{served.process.pid}/net/{table}").read_text("ascii").splitlines():
            fields = line.split()
            if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                listening.append(fields[1].partition(":")[0])
    assert listening == ["0100007F"]


def test_two_sidecars_have_different_keys_and_ports(served: ZmqClient, model: Path) -> None:
    with ZmqClient(model) as other:
        for key in ("server_public_key", "endpoint"):
            assert other.listening[key] != served.listening[key]


@linux
def test_no_key_is_in_argv_environment_or_log_and_no_path_or_pixel_in_the_log(
    model: Path, tmp_path: Path
) -> None:
    secret_name = "patient-4711"
    with ZmqClient(model, env=os.environ | {"TMPDIR": str(tmp_path)}) as sidecar:
        process = Path(f"/proc/{sidecar.process.pid}")
        outside = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
        sidecar.ask("encode", {"image": png(picture())})
        sidecar.ask("encode", {"image": secret_name.encode() * 9})
        sidecar.ask(secret_name)
        sidecar.ask("encode", {secret_name: picture()}, {"outputs": [secret_name]})
        sidecar.send([secret_name.encode()])
        sidecar.reply(None)
        sidecar.socket.close()
        stranger = sidecar.connect(*zmq.curve_keypair())
        assert not answered(stranger, 0.3)
        sidecar.process.terminate()
        sidecar.process.wait(PATIENCE)
    text = "".join(sidecar.log)
    keys = [sidecar.public_key.decode(), sidecar.secret_key.decode()]
    keys.append(sidecar.listening["server_public_key"])
    for key in keys:
        assert key not in text
        assert key.encode() not in outside
    assert secret_name not in text
    assert str(model) not in text


def test_the_log_is_json_lines_with_ids_codes_and_times(model: Path) -> None:
    with ZmqClient(model) as sidecar:
        sidecar.ask("encode", RGB)
        sidecar.ask("encode", RGB, {"resolution": 5})
        sidecar.ask("shutdown")
        sidecar.process.wait(PATIENCE)  # closing its stdin before would end it in mid-sentence
    lines = [json.loads(line) for line in sidecar.log]
    good, bad = (line for line in lines if line.get("op") == "encode")
    assert (good["level"], good["request"], good["code"]) == ("info", 1, "ok")
    assert {"queue_ms", "preprocess_ms", "inference_ms", "total_ms"} <= set(good)
    assert (bad["request"], bad["code"]) == (2, "tensor.shape")


@linux
def test_nothing_is_sent_anywhere(model: Path, tmp_path: Path) -> None:
    if shutil.which("strace") is None:
        pytest.skip("needs strace")
    trace = tmp_path / "trace"
    environment = {name: value for name, value in os.environ.items() if name != "CI"}
    words = ["strace", "-f", "-qq", "-e", "trace=connect,sendto,sendmsg,sendmmsg", "-o", str(trace)]
    line = [*words, *client.command(), "stdio", "--model", str(model)]
    requests = [message("encode", 1, RGB), message("stats", 2), message("shutdown", 3)]
    done = subprocess.run(
        line,
        cwd=ROOT,
        env=environment | {"HOME": str(tmp_path)},
        input=b"".join(map(client.packed, requests)),
        capture_output=True,
        check=False,
        timeout=PATIENCE,
    )
    if b"ptrace" in done.stderr:
        pytest.skip("strace may not trace here")
    assert done.returncode == 0, done.stderr
    assert trace.exists()
    calls = [line for line in trace.read_text("utf-8").splitlines() if "sin" in line]
    assert [line for line in calls if not re.search(r'"127\.0\.0\.1"|"::1"', line)] == []
    assert [path.name for path in tmp_path.iterdir()] == ["trace"]  # no device id, no cache


@linux
def test_it_serves_where_there_is_no_network(model: Path, tmp_path: Path) -> None:
    empty = ["unshare", "--net", "--map-root-user"]
    if shutil.which("unshare") is None or subprocess.run([*empty, "true"], check=False).returncode:
        pytest.skip("needs unshare and user namespaces")
    environment = {name: value for name, value in os.environ.items() if name != "CI"}
    words = [*client.command(), "encode", str(ROOT / "examples" / "ecg.png")]
    done = subprocess.run(
        [*empty, *words, "--model", str(model), "--out", str(tmp_path)],
        cwd=ROOT,
        env=environment,
        check=False,
        capture_output=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr


def test_a_frame_too_large_is_refused_and_one_beyond_reason_ends_the_connection(
    model: Path,
) -> None:
    with ZmqClient(model, "--max-queue-bytes", "1000000") as sidecar:
        limits = sidecar.ask("hello").header["limits"]
        assert limits["max_frame_bytes"] == 192 * 2**20
        assert sidecar.ask("encode", {"image": bytes(1_000_001)}).code == "request.too_large"
        assert sidecar.ask("hello").ok
        sidecar.send(message("encode", 900, {"image": bytes(2 * 192 * 2**20 + 1)}))
        with pytest.raises(TimeoutError):
            sidecar.receive(1)
        again = sidecar.connect()
        assert answered(again, PATIENCE)
        assert rss(sidecar) < 2**30


def rss(sidecar: client.Client) -> int:
    return int(sidecar.ask("stats").header["memory"]["rss_bytes"])


@linux
def test_at_ten_times_its_capacity_memory_stays_bounded_and_what_was_accepted_is_answered(
    slow_model: Path,
) -> None:
    flags = ("--max-queue", "4", "--max-queue-bytes", "40000000")
    tensor = {"pixel_values": np.zeros((4, 3, 448, 448), np.float32)}  # 9.6 MB
    with ZmqClient(slow_model, *flags) as sidecar:
        first = sidecar.submit("encode", tensor)
        sidecar.ask("hello")
        before = rss(sidecar)
        ids = [first] + [sidecar.submit("encode", tensor) for _ in range(40)]
        assert sidecar.ask("stats").header["queue"]["bytes"] <= 40_000_000
        assert rss(sidecar) - before < 160 * 2**20
        accepted = ids[:4]
        assert {sidecar.reply(id).code for id in ids[4:]} == {"busy"}
        for id in accepted:
            sidecar.ask("cancel", params={"target": id})
            assert sidecar.reply(id).code == "request.cancelled"


def test_a_guest_that_vanishes_with_work_under_way_disturbs_nobody(slow_model: Path) -> None:
    with ZmqClient(slow_model) as sidecar:
        guest = sidecar.connect()
        guest.send_multipart(message("encode", 1, {"image": b"no image"}))
        guest.close()
        assert sidecar.ask("encode", {"image": b"no image"}).code == "image.unreadable"


def test_verify_says_that_a_good_model_is_as_it_was_built(model: Path) -> None:
    done = client.run_cli("verify", "--model", model)
    assert done.returncode == 0, done.stderr
    assert "tests/stand-in" in done.stdout
    assert "projected_embeddings [1, 256, 8]" in done.stdout
    assert done.stdout.endswith("The model directory is as it was built.\n")


@pytest.mark.parametrize("spoil", ["changed", "missing", "no graph"])
def test_verify_says_what_is_wrong_with_which_file(spoil: str, tmp_path: Path) -> None:
    model = stand_in.make(tmp_path / "model")
    graph = model / "vision_encoder_quant.onnx"
    if spoil == "changed":
        graph.write_bytes(graph.read_bytes()[:-1] + b"\xff")
    elif spoil == "missing":
        graph.unlink()
    else:  # the hash is right, the content is not
        graph.write_bytes(b"not a graph")
        described = json.loads((model / "manifest.json").read_text("utf-8"))
        from sidecar import manifest

        files = manifest.describe(model, [graph.name])
        described["files"] = {
            name: {"bytes": file.bytes, "sha256": file.sha256} for name, file in files.items()
        }
        (model / "manifest.json").write_text(json.dumps(described), "utf-8")
    done = client.run_cli("verify", "--model", model)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("model.invalid: ")
    assert graph.name in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_encode_goes_on_after_an_image_that_it_cannot_read(model: Path, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.png", tmp_path / "patient-4711.png"
    good.write_bytes(png(picture()))
    bad.write_bytes(b"text")
    out = tmp_path / "out"
    words = ("encode", bad, tmp_path / "absent.png", good, "--model", model, "--out", out)
    done = client.run_cli(*words)
    assert done.returncode == 1
    assert sorted(path.name for path in out.iterdir()) == ["good.heatmap.png", "good.npz"]
    assert [line.split(":")[:2] for line in done.stderr.splitlines()] == [
        ["image 1 of 3", " image.unreadable"],
        ["image 2 of 3", " image.unreadable"],
    ]
    assert "4711" not in done.stderr + done.stdout


def test_encode_of_two_images_with_one_name_writes_nothing(model: Path, tmp_path: Path) -> None:
    for name in ("a.png", "A.webp"):
        (tmp_path / name).write_bytes(png(picture()))
    images = (tmp_path / "a.png", tmp_path / "A.webp")
    done = client.run_cli("encode", *images, "--model", model, "--out", tmp_path / "out")
    assert done.returncode == 1
    assert "same name" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "words", [["--version"], ["--help"], ["serve", "--help"]], ids=lambda words: " ".join(words)
)
def test_help_and_version_are_on_stdout(words: list[str]) -> None:
    done = client.run_cli(*words)
    assert done.returncode == 0
    assert done.stdout
    assert not done.stderr


@pytest.mark.parametrize(
    "words",
    [[], ["dance"], ["serve"], ["serve", "--model", "x", "--max-queue", "0"]],
    ids=["nothing", "an unknown command", "no model", "a queue of none"],
)
def test_a_wrong_command_line_is_told_in_argparses_words(words: list[str]) -> None:
    done = client.run_cli(*words)
    assert done.returncode == 2
    assert "usage: vision-sidecar" in done.stderr


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
def test_ctrl_c_ends_encode_without_a_traceback(slow_model: Path, tmp_path: Path) -> None:
    words = ["encode", str(ROOT / "examples" / "ecg.png"), "--model", str(slow_model)]
    process = subprocess.Popen(
        [*client.command(), *words, "--out", str(tmp_path / "out")],
        cwd=ROOT,
        stderr=subprocess.PIPE,
    )
    while not (tmp_path / "out").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == -signal.SIGINT
    assert stderr == b""
    assert list((tmp_path / "out").iterdir()) == []
