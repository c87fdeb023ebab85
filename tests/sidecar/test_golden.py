"""Frames that both languages hold to the byte: we write the replies, the bridge the requests.

UPDATE_GOLDEN=1 writes the replies anew; look at the difference before you commit it.
"""

import os
from pathlib import Path

import numpy as np
import pytest

from sidecar import errors, protocol
from sidecar.errors import SidecarError
from sidecar.job import HeatmapOptions, ImageFile, Job, Pixels, Tensor
from sidecar.protocol import Cancel, Done, Encode, Failed, Hello, Reply, Shutdown, Stats

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
DIGEST = "0123456789abcdef" * 4

REPLIES: dict[str, Reply] = {
    "hello": Done(
        0,
        fields={
            "protocol": [1, 1],
            "sidecar": "0.1.0",
            "state": "loading",
            "model": DIGEST,
            "model_id": "tests/stand-in",
            "limits": {"max_queue": 32, "max_queue_bytes": 2**32},
        },
    ),
    "encode": Done(
        2**32 - 1,
        arrays={
            "projected_embeddings": np.arange(4, dtype=np.float32).reshape(1, 2, 2),
            "attention_scores": np.array([[0, 1]], np.float32),
            "pooled_embedding": np.array([[1, 2]], np.float32),
        },
        fields={
            "model": DIGEST,
            "resolution": [448, 896],
            "norms": [[9.5, 12.25]],
            "flat": [False],
            "timing": {"queue_ms": 0.0, "preprocess_ms": 1.5, "inference_ms": 2345.678},
        },
    ),
    "encode-heatmap": Done(
        128,
        arrays={"heatmap_png": np.frombuffer(b"\x89PNG\r\n\x1a\n", np.uint8)},
        fields={
            "model": DIGEST,
            "resolution": [224, 224],
            "norms": [[1.0, 1.03125]],
            "flat": [True],
            "timing": {},
        },
    ),
    "cancel": Done(65536, fields={"cancelled": True}),
    "stats": Done(3, fields={"counts": {"encode": {"ok": 2, "busy": 1}}, "expected_ms": {}}),
    "shutdown": Done(127),
    "failed": Failed(7, errors.Busy("32 requests are waiting, and no more may.")),
    "failed-unicode": Failed(
        8, errors.RequestUnsupported("the op 'einbetten für 心電図' is unknown.")
    ),
    "failed-without-id": Failed(None, errors.RequestMalformed("expected an id.")),
    "failed-duplicate": Failed(
        None, errors.RequestDuplicateId("the id 9 is still in flight."), duplicate_of=9
    ),
}

REQUESTS = {
    "hello": Hello(0),
    "stats": Stats(127),
    "cancel": Cancel(128, target=2**32 - 1),
    "shutdown": Shutdown(2**32 - 1),
    "encode-image": Encode(65535, Job(ImageFile(b"\x89PNG")), bytes=4),
    "encode-rgb": Encode(
        65536,
        Job(
            Pixels(np.array([[[255, 0, 0], [0, 0, 255]]], np.uint8)),
            resolution=(448, 896),
            outputs=("pooled_embedding", "heatmap_png"),
            heatmap=HeatmapOptions("viridis", alpha=1, threshold=0.25, invert=True, legend=False),
        ),
        bytes=6,
    ),
    "encode-pixel-values": Encode(
        7,
        Job(
            Tensor(np.array([-1, 0.5, 1], np.float32).reshape(1, 3, 1, 1)),
            resolution=(224, 224),
            outputs=("attention_scores",),
        ),
        bytes=12,
    ),
}


def read(path: Path) -> list[bytes]:
    return [bytes.fromhex(line) for line in path.read_text("ascii").splitlines()]


@pytest.mark.parametrize("name", REPLIES)
def test_a_reply_is_written_byte_for_byte(name: str) -> None:
    path = GOLDEN / "replies" / f"{name}.hex"
    frames = [bytes(frame) for frame in protocol.encode(REPLIES[name])]
    if os.environ.get("UPDATE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(f"{frame.hex()}\n" for frame in frames), "ascii")
    assert frames == read(path)


def test_every_golden_reply_is_one_that_we_write() -> None:
    assert {path.stem for path in (GOLDEN / "replies").glob("*.hex")} == set(REPLIES)


@pytest.mark.parametrize("name", sorted(path.stem for path in (GOLDEN / "requests").glob("*.hex")))
def test_a_request_that_the_bridge_writes_is_read_as_it_was_meant(name: str) -> None:
    request = protocol.decode(read(GOLDEN / "requests" / f"{name}.hex"))
    meant = REQUESTS[name]
    assert type(request) is type(meant)
    assert request.id == meant.id
    if isinstance(request, Encode) and isinstance(meant, Encode):
        assert request.bytes == meant.bytes
        job, other = request.job, meant.job
        assert (job.resolution, job.outputs, job.heatmap) == (
            other.resolution,
            other.outputs,
            other.heatmap,
        )
        assert type(job.input) is type(other.input)
        assert content(job) == content(other)
    else:
        assert request == meant


def content(job: Job) -> object:
    match job.input:
        case ImageFile(data):
            return bytes(data)
        case Pixels(array) | Tensor(array):
            return array.dtype, array.tolist()


def test_the_list_of_codes_is_the_codes_there_are() -> None:
    known = {error.code for error in SidecarError.__subclasses__()}
    assert known == set((GOLDEN / "codes.txt").read_text("ascii").split())
