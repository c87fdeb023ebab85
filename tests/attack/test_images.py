"""A hostile image costs its own request, and nobody else's: the short form of `make attack`."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import client, waiting
from tests.attack import hostile_images
from tests.attack.processes import descendants, processor_seconds
from tests.client import Client, StdioClient, ZmqClient

linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc, and limits of Linux")

Transport = type[StdioClient] | type[ZmqClient]

SMALL = hostile_images.saved(Image.new("RGB", (9, 9), "red"), "PNG")
AT_224 = {"resolution": 224}

until = partial(waiting.until, patience=client.PATIENCE)


def decoding(sidecar: Client, before: dict[int, float]) -> int:
    """The process that has begun to spend its time."""

    def busy() -> list[int]:
        now = descendants(sidecar.process.pid)
        return [p for p in now & set(before) if processor_seconds(p) > before[p] + 0.1]

    until(busy)
    return busy()[0]


def processes(sidecar: Client) -> dict[int, float]:
    """The decoder processes and what they have spent, once they have started."""
    until(lambda: sidecar.ask("stats").header["decoders"]["processes"] == 2)
    assert sidecar.ask("encode", {"image": SMALL}, AT_224).ok
    return {pid: processor_seconds(pid) for pid in descendants(sidecar.process.pid)}


@linux
@pytest.mark.parametrize("name", ["JPEG, fill bytes", "PNG, empty private chunks"])
def test_after_a_cancel_the_next_image_does_not_wait_for(
    name: str, transport: Transport, model: Path
) -> None:
    with transport(model) as sidecar:
        before = processes(sidecar)
        slow = sidecar.submit("encode", {"image": hostile_images.MAKERS[name](0.5)}, AT_224)
        pid = decoding(sidecar, before)
        assert sidecar.ask("cancel", params={"target": slow}).header["cancelled"] is True
        assert sidecar.reply(slow).code == "request.cancelled"
        assert sidecar.ask("encode", {"image": SMALL}, AT_224).ok
        until(lambda: pid not in descendants(sidecar.process.pid))
        until(lambda: sidecar.ask("stats").header["decoders"] == {"processes": 2, "restarts": 1})


@linux
def test_a_decoder_that_crashes_takes_no_other_request_along(model: Path) -> None:
    with ZmqClient(model) as sidecar:
        before = processes(sidecar)
        slow = sidecar.submit("encode", {"image": hostile_images.jpeg_fill(1)}, AT_224)
        waiting = [sidecar.submit("encode", {"image": SMALL}, AT_224) for _ in range(3)]
        os.kill(decoding(sidecar, before), 11)
        refused = sidecar.reply(slow)
        assert refused.code == "image.unreadable"
        assert refused.header["error"]["retryable"] is False
        assert all(sidecar.reply(id).ok for id in waiting)


def test_the_queue_counts_what_pictures_take_once_they_are_decoded(slow_model: Path) -> None:
    large = hostile_images.png(25 / 64)  # 5000 x 5000 pixels
    with ZmqClient(slow_model, "--max-queue-bytes", str(2**27)) as sidecar:
        first = sidecar.submit("encode", {"image": large}, AT_224)
        queue = sidecar.ask("stats").header["queue"]
        assert queue["bytes"] == len(large) + 3 * 5000 * 5000
        refused = sidecar.ask("encode", {"image": large}, AT_224)
        assert refused.code == "busy"
        assert refused.header["error"]["retryable"] is True
        small = sidecar.submit("encode", {"image": SMALL}, AT_224)
        for id in (first, small):
            sidecar.ask("cancel", params={"target": id})
        until(lambda: sidecar.ask("stats").header["queue"]["bytes"] == 0)
        alone = sidecar.submit("encode", {"image": hostile_images.png(0.9)}, AT_224)
        assert sidecar.ask("stats").header["queue"]["requests"] == 1  # larger than the bound
        sidecar.ask("cancel", params={"target": alone})


def test_too_many_pixels_are_refused_before_anything_waits(slow_model: Path) -> None:
    with ZmqClient(slow_model, "--max-pixels", "1000") as sidecar:
        running = sidecar.submit("encode", {"image": SMALL}, AT_224)
        assert sidecar.ask("encode", {"image": hostile_images.png(0.01)}).code == "image.too_large"
        sidecar.ask("cancel", params={"target": running})
        assert sidecar.reply(running).code == "request.cancelled"


def motion_photo() -> bytes:
    """A photo, with a video behind it that is full of what would be scans."""
    photo = hostile_images.saved(Image.new("RGB", (90, 60), "red"), "JPEG", progressive=True)
    return photo + b"\x00\x00\x00\x18ftypmp42" + b"\xff\xda\x00\x08" * 100_000


def several_pictures() -> bytes:
    """A photo with a dozen more in the file, ten scans each."""
    photo = Image.effect_noise((90, 60), 60).convert("RGB")
    more = [photo.resize((45, 30))] * 12
    file = io.BytesIO()
    photo.save(file, "MPO", save_all=True, append_images=more, progressive=True)
    assert file.getvalue().count(b"\xff\xda") > 100
    return file.getvalue()


@pytest.mark.parametrize("make", [motion_photo, several_pictures])
def test_what_lies_behind_a_photo_is_not_counted(
    make: Callable[[], bytes], sidecar: Client
) -> None:
    assert sidecar.ask("encode", {"image": make()}, AT_224).ok


@linux
def test_a_system_without_memory_is_not_told_as_a_damaged_file(model: Path, tmp_path: Path) -> None:
    import resource

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (900 * 2**20, 900 * 2**20))

    page = tmp_path / "page.webp"
    page.write_bytes(hostile_images.webp(1))
    words = ("encode", page, "--model", model, "--out", tmp_path, "--resolution", "224")
    done = client.run_cli(*words, "--threads", "1", preexec_fn=limit)
    assert done.returncode == 1
    assert "resources.exhausted: " in done.stderr


def test_drawing_is_timed(sidecar: Client) -> None:
    assert sidecar.ask("encode", {"image": SMALL}, AT_224).header["timing"]["drawing_ms"] == 0
    params = {**AT_224, "outputs": ["heatmap_png"]}
    picture = np.zeros((300, 300, 3), np.uint8)
    assert sidecar.ask("encode", {"rgb": picture}, params).header["timing"]["drawing_ms"] > 0
    stats = sidecar.ask("stats").header
    assert stats["expected_drawing_ms"]["224x224"] > 0
    assert stats["latency"]["224x224"]["drawing_ms"]["p99"] > 0
