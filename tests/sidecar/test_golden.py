"""Frames that both languages hold to the byte: we write the replies, the bridge the requests.

UPDATE_GOLDEN=1 writes the replies anew; look at the difference before you commit it.
"""

import os
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sidecar import errors, protocol
from sidecar.errors import SidecarError
from sidecar.job import Embeddings, HeatmapOptions, ImageFile, Job, Pixels, Tensor
from sidecar.protocol import (
    Cancel,
    CollectionAdd,
    CollectionInfo,
    CollectionRemove,
    CollectionSearch,
    Done,
    Encode,
    Failed,
    Hello,
    Reply,
    Shutdown,
    Stats,
)

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
CASES = Path("/nonexistent/folder/cases")
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
    "collection-add": Done(
        8,
        fields={
            "model": DIGEST,
            "resolution": [448, 448],
            "timing": {"queue_ms": 0.0, "preprocess_ms": 1.5, "inference_ms": 2345.678},
            "added": True,
            "count": 7,
        },
    ),
    "collection-search": Done(
        9,
        arrays={
            "matches": np.frombuffer(
                '[{"id":"Fall 7 心電図","similarity":0.5,"metadata":{"__proto__":{"age":71}},'
                '"regions":[{"query":[0.0,0.0,0.25,0.25],"match":[0.5,0.25,0.75,0.5],'
                '"similarity":0.75}]}]'.encode(),
                np.uint8,
            )
        },
        fields={"count": 7},
    ),
    "collection-remove": Done(10, fields={"count": 6}),
    "collection-info": Done(
        11,
        fields={
            "count": 6,
            "model": DIGEST,
            "projection": "projector",
            "resolution": [448, 448],
            "bytes": 2**33,
            "fitted": 0,
            "read_only": True,
        },
    ),
    "failed-collection": Failed(
        12, errors.CollectionBusy("the collection is open in another program.")
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
    "collection-add": CollectionAdd(
        8,
        CASES,
        case="Fall 7 心電図",
        metadata='{"age":71,"tags":["a",null,true],"note":{"by":"x","score":0.5}}',
        replace=True,
        outputs=(),
        job=Job(
            ImageFile(b"\1\2\3\4"),
            resolution=(448, 448),
            outputs=("pooled_embedding", "projected_embeddings"),
        ),
        embeddings=None,
        bytes=4,
        low=True,
    ),
    "collection-search": CollectionSearch(
        9,
        CASES,
        k=3,
        regions=True,
        where={"age": 71},
        read_only=True,
        outputs=(),
        job=None,
        embeddings=Embeddings(
            np.array([[1]], np.float32), np.array([[[0.5], [1.5]]], np.float32), (448, 448)
        ),
        bytes=12,
    ),
    "collection-remove": CollectionRemove(10, CASES, "case 7"),
    "collection-info": CollectionInfo(11, CASES, read_only=True),
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
    assert plain(request) == plain(meant)


def plain(value: Any) -> object:
    """With arrays and payloads as values that compare."""
    if isinstance(value, np.ndarray):
        return value.dtype, value.tolist()
    if isinstance(value, memoryview):
        return bytes(value)
    if is_dataclass(value):
        parts = {field.name: plain(getattr(value, field.name)) for field in fields(value)}
        return type(value).__name__, parts
    return value


def test_the_list_of_codes_is_the_codes_there_are() -> None:
    known = {error.code for error in SidecarError.__subclasses__()}
    assert known == set((GOLDEN / "codes.txt").read_text("ascii").split())
