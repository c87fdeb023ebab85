"""A client, in any order that Hypothesis thinks of, against a model of the queue."""

from __future__ import annotations

import errno
import threading
import tracemalloc
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any, cast

import msgpack
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from PIL import Image

from sidecar import __version__, protocol, service
from sidecar.collection_ops import CollectionOps
from sidecar.decoder import Picture
from sidecar.encoder import Encoding, Prepared
from sidecar.engine import Check, Choice, CustomOps
from sidecar.errors import ImageUnreadable, ModelInvalid, RequestTooLarge, SidecarError
from sidecar.job import Job
from sidecar.manifest import Manifest, Normalisation
from sidecar.protocol import Frame
from sidecar.service import Service
from sidecar.session import Run
from sidecar.settings import Limits
from tests import waiting
from tests.attack.hostile_images import saved
from tests.client import message
from tests.sidecar import messages

LIMITS = Limits(max_queue=3, max_queue_bytes=1000)
MANIFEST = Manifest(
    model_id="m",
    revision="1",
    recipe="default",
    projection="linear",
    graph="g.onnx",
    patch_size=14,
    vision_hidden=1,
    text_hidden=1,
    default_resolution=224,
    resolutions=(224,),
    normalisation=Normalisation(),
    files={},
    digest="d" * 64,
)
PATIENCE = 120.0


PICTURE = cast(Picture, None)  # a puppet draws nothing

until = partial(waiting.until, patience=PATIENCE)


class NoDecoders:
    """A puppet decodes nothing."""

    def report(self) -> dict[str, int]:
        return {"processes": 0, "restarts": 0}


class Puppet:
    """An encoder whose runs last until they are told to end, one way or another."""

    decoders = NoDecoders()
    choice = Choice("g.onnx", 0, True, Check(), CustomOps(on=False, why="a puppet has none."))

    def __init__(self) -> None:
        self.working = threading.Event()
        self.finish = threading.Event()
        self.failure: Exception | None = None
        self.prepared: list[int] = []  # the sizes of the files

    def prepare(self, job: Job, run: Run) -> Prepared:
        self.prepared.append(len(job.input.data))  # type: ignore[union-attr]
        return Prepared(job, np.zeros((1, 3, 1, 1), np.float32), PICTURE, 1.0)

    def infer(self, prepared: Prepared, run: Run) -> Encoding:
        self.working.set()
        try:
            while not self.finish.wait(0.0005):
                run.check()
            run.check()  # one that was cancelled leaves the word to finish to the next
            self.finish.clear()
            if self.failure is not None:
                raise self.failure
            return Encoding(
                {"pooled_embedding": np.zeros(1, np.float32)}, (224, 224), 1, 1.0, 1.0, 0.0
            )
        finally:
            self.working.clear()


class Conversation:
    def __init__(self, load: Any = None, limits: Limits = LIMITS) -> None:
        self.puppet = Puppet()
        encoder: Any = self.puppet
        self.replies: list[dict[str, Any]] = []
        self.finished: list[SidecarError | None] = []
        self.ready = threading.Event()
        self.service = Service(
            MANIFEST,
            load=load or (lambda: encoder),
            limits=limits,
            deliver=self.deliver,
            on_ready=self.ready.set,
            on_finished=self.finished.append,
        )
        self.service.start()

    def deliver(self, client: object, frames: list[Frame]) -> None:
        assert client == "app"
        self.replies.append(msgpack.unpackb(frames[0]))

    def send(self, op: str, id: int, inputs: Any = None, params: Any = None) -> None:
        self.service.handle("app", message(op, id, inputs, params or {}))

    def ask(self, op: str, id: int, inputs: Any = None, params: Any = None) -> dict[str, Any]:
        """For what is answered before `handle` returns."""
        before = len(self.replies)
        self.send(op, id, inputs, params)
        assert len(self.replies) > before
        return self.replies[-1]


def code(reply: dict[str, Any]) -> str:
    return "ok" if reply["ok"] else reply["error"]["code"]


class Queue(RuleBasedStateMachine):
    """`pending` is the model: ids and bytes that were accepted, the first one being worked on."""

    def __init__(self) -> None:
        super().__init__()
        self.talk = Conversation()
        assert self.talk.ready.wait(PATIENCE)
        self.pending: list[tuple[int, int]] = []
        self.low: set[int] = set()
        self.owed: Counter[int | None] = Counter()
        self.id = 0

    def settle(self) -> None:
        """Wait until the worker has taken up what it can."""
        size = sum(size for _, size in self.pending)
        until(lambda: self.talk.service._bytes == size)
        until(lambda: self.talk.puppet.working.is_set() == bool(self.pending))

    @rule(size=st.sampled_from([0, 1, 300, 400, 1000, 1001]), low=st.booleans())
    def encode(self, size: int, low: bool) -> None:
        self.id += 1
        self.owed[self.id] += 1
        waiting = sum(size for _, size in self.pending)
        if size > LIMITS.max_queue_bytes:
            expected = "request.too_large"
        elif len(self.pending) == LIMITS.max_queue or waiting + size > LIMITS.max_queue_bytes:
            expected = "busy"
        else:
            expected = None
        if expected is None:
            params = {"priority": "low"} if low else {}
            self.talk.send("encode", self.id, {"image": bytes(size)}, params)
            self.low |= {self.id} if low else set()
            ahead = [index for index, (id, _) in enumerate(self.pending) if id not in self.low]
            place = len(self.pending) if low else max([0, *ahead], default=0) + bool(self.pending)
            self.pending.insert(place, (self.id, size))
            self.settle()
        else:
            reply = self.talk.ask("encode", self.id, {"image": bytes(size)})
            assert (reply["id"], code(reply)) == (self.id, expected)

    @precondition(lambda self: self.pending)
    @rule(data=st.data(), op=st.sampled_from(["encode", "hello", "cancel"]))
    def repeat_an_id(self, data: st.DataObject, op: str) -> None:
        id, _ = data.draw(st.sampled_from(self.pending))
        self.owed[None] += 1
        inputs = {"image": b"x"} if op == "encode" else None
        reply = self.talk.ask(op, id, inputs, {"target": id})
        assert code(reply) == "request.duplicate_id"
        assert reply["error"]["duplicate_of"] == id

    @precondition(lambda self: self.pending)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        found = data.draw(st.sampled_from(self.pending))
        self.id += 1
        self.owed[self.id] += 1
        reply = self.talk.ask("cancel", self.id, params={"target": found[0]})
        assert reply["cancelled"] is True
        assert (self.talk.replies[-2]["id"], code(self.talk.replies[-2])) == (
            found[0],
            "request.cancelled",
        )
        self.pending.remove(found)
        self.settle()

    @rule()
    def cancel_nothing(self) -> None:
        self.id += 1
        self.owed[self.id] += 1
        reply = self.talk.ask("cancel", self.id, params={"target": 10**6})
        assert reply["cancelled"] is False

    @precondition(lambda self: self.pending)
    @rule(failure=st.sampled_from([None, ImageUnreadable("no."), RuntimeError("secret")]))
    def finish(self, failure: Exception | None) -> None:
        before = len(self.talk.replies)
        id, _ = self.pending.pop(0)
        self.talk.puppet.failure = failure
        self.talk.puppet.finish.set()
        until(lambda: len(self.talk.replies) > before)
        reply = self.talk.replies[-1]
        match failure:
            case None:
                expected = "ok"
            case ImageUnreadable():
                expected = "image.unreadable"
            case _:
                expected = "internal"
        assert (reply["id"], code(reply)) == (id, expected)
        assert "secret" not in str(reply)
        self.settle()

    @rule(frames=st.lists(st.binary(max_size=20), max_size=10))
    def send_noise(self, frames: list[bytes]) -> None:
        self.owed[None] += 1
        before = len(self.talk.replies)
        self.talk.service.handle("app", frames)
        assert len(self.talk.replies) == before + 1
        assert self.talk.replies[-1]["id"] is None

    @rule()
    def look(self) -> None:
        self.id += 1
        self.owed[self.id] += 1
        stats = self.talk.ask("stats", self.id)
        assert stats["queue"] == {
            "requests": len(self.pending),
            "bytes": sum(size for _, size in self.pending),
        }

    @invariant()
    def every_request_but_the_pending_ones_has_exactly_one_reply(self) -> None:
        answered = Counter(reply["id"] for reply in self.talk.replies)
        assert answered + Counter(id for id, _ in self.pending) == self.owed

    def teardown(self) -> None:
        self.talk.service.end()
        self.talk.service._worker.join(PATIENCE)
        assert not self.talk.service._worker.is_alive()
        assert Counter(reply["id"] for reply in self.talk.replies) == self.owed
        assert self.talk.finished[0] is None


TestQueue = Queue.TestCase
TestQueue.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


@pytest.fixture
def talk() -> Conversation:
    conversation = Conversation()
    assert conversation.ready.wait(PATIENCE)
    return conversation


def test_requests_are_done_in_the_order_they_came(talk: Conversation) -> None:
    for id in (3, 1, 2):
        talk.send("encode", id, {"image": b"x"})
    for count in (1, 2, 3):
        talk.puppet.finish.set()
        until(lambda count=count: len(talk.replies) == count)
        until(lambda: not talk.puppet.finish.is_set())
    assert [reply["id"] for reply in talk.replies] == [3, 1, 2]


def test_requests_of_low_priority_wait_while_a_normal_one_waits() -> None:
    talk = Conversation(limits=Limits(max_queue=5))
    assert talk.ready.wait(PATIENCE)
    for id, priority in ((1, "low"), (2, "low"), (3, "normal"), (4, "low"), (5, None)):
        talk.send("encode", id, {"image": b"x"}, {"priority": priority})
        until(talk.puppet.working.is_set)  # on the first one
    for count in (1, 2, 3, 4, 5):
        until(talk.puppet.working.is_set)
        talk.puppet.finish.set()
        until(lambda count=count: len(talk.replies) == count)
    assert [reply["id"] for reply in talk.replies] == [1, 3, 5, 2, 4]


@pytest.mark.parametrize("priority", ["high", "", 1, True, ["low"]], ids=repr)
def test_another_priority_is_refused(talk: Conversation, priority: Any) -> None:
    reply = talk.ask("encode", 1, {"image": b"x"}, {"priority": priority})
    assert (reply["id"], code(reply)) == (1, "request.malformed")


@pytest.mark.parametrize("op", ["hello", "stats", "cancel", "encode"])
def test_a_request_whose_handling_fails_is_answered_under_its_id(
    talk: Conversation, monkeypatch: pytest.MonkeyPatch, op: str
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a secret")

    name = {"hello": "_hello", "stats": "_stats", "cancel": "_cancel", "encode": "_accept"}[op]
    monkeypatch.setattr(talk.service, name, fail)
    inputs = {"image": b"x"} if op == "encode" else None
    reply = talk.ask(op, 7, inputs, {"target": 1})
    assert (reply["id"], code(reply)) == (7, "internal")
    assert "secret" not in str(reply)
    monkeypatch.undo()
    assert talk.ask("stats", 8)["counts"] == {op: {"internal": 1}}


def test_a_message_whose_reading_fails_is_answered_without_an_id(
    talk: Conversation, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a secret")

    monkeypatch.setattr(protocol, "decode", fail)
    reply = talk.ask("hello", 7)
    assert (reply["id"], code(reply)) == (None, "internal")
    assert "a message could not be read" in caplog.messages


@pytest.mark.parametrize(
    "shortage",
    [
        MemoryError(),
        OSError(errno.EMFILE, "x"),
        OSError(errno.ENOMEM, "x"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("Failed to allocate memory for requested buffer of size 9"),
    ],
    ids=repr,
)
def test_a_request_for_which_the_machine_is_too_small_may_be_tried_again(
    talk: Conversation, shortage: Exception
) -> None:
    talk.puppet.failure = shortage
    talk.send("encode", 1, {"image": b"x"})
    talk.puppet.finish.set()
    until(lambda: talk.replies)
    assert code(talk.replies[0]) == "resources.exhausted"
    assert talk.replies[0]["error"]["retryable"] is True


def test_the_next_image_is_prepared_while_one_is_inferred_and_no_more_than_that(
    talk: Conversation,
) -> None:
    for id in (1, 2, 3):
        talk.send("encode", id, {"image": bytes(id)})
    until(lambda: talk.puppet.prepared == [1, 2])
    talk.send("cancel", 4, params={"target": 2})
    until(lambda: talk.puppet.prepared == [1, 2, 3])
    for count in (3, 4):
        talk.puppet.finish.set()
        until(lambda count=count: len(talk.replies) == count)
    assert talk.puppet.prepared == [1, 2, 3]


def test_a_cancelled_request_leaves_memory_at_once_while_an_image_is_slow_to_prepare() -> None:
    megabyte = 2**20
    talk = Conversation(limits=Limits(max_queue=3, max_queue_bytes=30 * megabyte))
    assert talk.ready.wait(PATIENCE)
    preparing, release = threading.Event(), threading.Event()

    def slow(job: Job, run: Run) -> Prepared:
        preparing.set()
        release.wait()
        return Prepared(job, np.zeros((1, 3, 1, 1), np.float32), PICTURE, 1.0)

    talk.puppet.prepare = slow  # type: ignore[method-assign]
    talk.send("encode", 1, {"image": b"x"})
    assert preparing.wait(PATIENCE)
    tracemalloc.start()
    try:
        for id in range(2, 12):
            talk.send("encode", id, {"image": bytes(20 * megabyte)})
            talk.send("cancel", 1000 + id, params={"target": id})
        assert talk.ask("stats", 5000)["queue"]["bytes"] == 1
        assert tracemalloc.get_traced_memory()[0] < 20 * megabyte
    finally:
        tracemalloc.stop()
        release.set()
    assert [code(reply) for reply in talk.replies].count("request.cancelled") == 10


def test_the_payload_of_a_cancelled_request_counts_until_its_preparation_ends(
    talk: Conversation,
) -> None:
    preparing, release = threading.Event(), threading.Event()

    def slow(job: Job, run: Run) -> Prepared:
        preparing.set()
        release.wait()
        return Prepared(job, np.zeros((1, 3, 1, 1), np.float32), PICTURE, 1.0)

    talk.send("encode", 1, {"image": b"x"})
    assert talk.puppet.working.wait(PATIENCE)
    talk.puppet.prepare = slow  # type: ignore[method-assign]
    talk.send("encode", 2, {"image": bytes(900)})
    assert preparing.wait(PATIENCE)
    talk.send("cancel", 3, params={"target": 2})
    assert talk.ask("stats", 4)["queue"] == {"requests": 1, "bytes": 901}
    assert code(talk.ask("encode", 5, {"image": bytes(900)})) == "busy"
    release.set()
    until(lambda: talk.ask("stats", 6)["queue"]["bytes"] == 1)


def test_an_image_that_cannot_be_prepared_is_told_in_its_turn(talk: Conversation) -> None:
    def prepare(job: Job, run: Run) -> Prepared:
        raise ImageUnreadable("no.")

    talk.send("encode", 1, {"image": b"x"})
    assert talk.puppet.working.wait(PATIENCE)
    talk.puppet.prepare = prepare  # type: ignore[method-assign]
    talk.send("encode", 2, {"image": b"x"})
    talk.puppet.finish.set()
    until(lambda: len(talk.replies) == 2)
    assert [code(reply) for reply in talk.replies] == ["ok", "image.unreadable"]


def test_an_id_reused_while_its_cancelled_run_winds_down_is_answered_by_its_own_run(
    talk: Conversation,
) -> None:
    release = threading.Event()

    def stubborn(prepared: Prepared, run: Run) -> Encoding:
        release.wait(PATIENCE)  # a codec, say, that no cancel reaches
        run.check()
        return Encoding({}, (224, 224), 1, 1.0, 1.0, 0.0)

    talk.puppet.infer = stubborn  # type: ignore[method-assign]
    talk.send("encode", 7, {"image": b"x"})
    until(lambda: not talk.service._queue)
    talk.send("cancel", 8, params={"target": 7})
    talk.send("encode", 7, {"image": b"x"})
    release.set()
    until(lambda: len(talk.replies) == 3)
    assert [(reply["id"], code(reply)) for reply in talk.replies] == [
        (7, "request.cancelled"),
        (8, "ok"),
        (7, "ok"),
    ]


def test_the_end_answers_each_request_that_is_pending(talk: Conversation) -> None:
    for id in (1, 2):
        talk.send("encode", id, {"image": b"x"})
    talk.service.end()
    assert talk.finished == [None]
    found = [(reply["id"], code(reply)) for reply in talk.replies]
    assert found == [(1, "request.cancelled"), (2, "request.cancelled")]


def test_a_cancel_tells_whether_there_was_anything_to_stop(talk: Conversation) -> None:
    talk.send("encode", 1, {"image": b"x"})
    for id, cancelled in ((2, True), (3, False)):
        reply = talk.ask("cancel", id, params={"target": 1})
        assert (code(reply), reply["cancelled"]) == ("ok", cancelled)


def test_a_file_counts_with_the_pixels_that_it_holds() -> None:
    talk = Conversation(limits=Limits(max_queue_bytes=10_000, max_pixels=300))
    assert talk.ready.wait(PATIENCE)
    page, larger = (saved(Image.new("RGB", (width, 20)), "PNG") for width in (15, 16))
    talk.send("encode", 1, {"image": page})
    assert talk.ask("stats", 2)["queue"] == {"requests": 1, "bytes": len(page) + 3 * 15 * 20}
    assert code(talk.ask("encode", 3, {"image": larger})) == "image.too_large"


class Shelf:
    """Collections that keep what they are asked."""

    any_open = False

    def __init__(self) -> None:
        self.performed: list[tuple[str, Any, bool]] = []

    def open(self, request: Any) -> str:
        return f"the file of {request.op}"

    def perform(self, request: Any, collection: Any, encoding: Encoding | None) -> Any:
        self.performed.append((request.op, collection, encoding is not None))
        return {"matches": np.zeros(1, np.uint8)}, {"count": 7}

    def close(self) -> None:
        pass


def test_what_is_done_to_a_collection_gets_its_file_and_the_embeddings(
    talk: Conversation,
) -> None:
    shelf = Shelf()
    talk.service._collections = cast(CollectionOps, shelf)
    params = {"collection": str(Path("cases").resolve()), "id": "a"}
    talk.send("collection.add", 1, {"image": b"x"}, params)
    talk.puppet.finish.set()
    talk.send("collection.info", 2, params=params)
    until(lambda: len(talk.replies) == 2)
    assert shelf.performed == [
        ("collection.add", "the file of collection.add", True),
        ("collection.info", "the file of collection.info", False),
    ]
    added, info = talk.replies
    assert [output["name"] for output in added["outputs"]] == ["pooled_embedding", "matches"]
    assert (added["count"], added["model"], added["resolution"]) == (7, "d" * 64, [224, 224])
    assert (info["count"], "model" in info) == (7, False)


def test_draining_does_what_was_accepted_and_takes_no_more(talk: Conversation) -> None:
    talk.send("encode", 1, {"image": b"x"})
    talk.service.drain()
    assert code(talk.ask("encode", 2, {"image": b"x"})) == "request.cancelled"
    talk.puppet.finish.set()
    until(lambda: talk.finished == [None])
    assert [(reply["id"], code(reply)) for reply in talk.replies][1:] == [(1, "ok")]


def test_the_end_comes_while_a_model_still_loads() -> None:
    release = threading.Event()
    talk = Conversation(load=lambda: release.wait(PATIENCE) and Puppet())
    assert code(talk.ask("encode", 1, {"image": b"x"})) == "model.loading"
    assert code(talk.ask("shutdown", 2)) == "ok"
    assert talk.finished == [None]
    assert code(talk.ask("encode", 3, {"image": b"x"})) == "request.cancelled"
    release.set()


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (ModelInvalid("g.onnx has changed."), "model.invalid"),
        (MemoryError(), "resources.exhausted"),
        (KeyError("x"), "internal"),
    ],
    ids=["a changed file", "no memory", "a bug"],
)
def test_a_model_that_does_not_load_is_told_once(failure: Exception, expected: str) -> None:
    def load() -> None:
        raise failure

    talk = Conversation(load=load)
    until(lambda: talk.finished)
    [reason] = talk.finished
    assert reason is not None
    assert reason.code == expected


def test_what_is_wrong_with_a_message_is_not_told_under_an_id_that_is_owed_another_reply(
    talk: Conversation,
) -> None:
    talk.send("encode", 7, {"image": b"x"})
    reply = talk.ask("nothing", 7)
    assert (reply["id"], code(reply)) == (None, "request.duplicate_id")
    assert reply["error"]["duplicate_of"] == 7
    talk.puppet.finish.set()
    until(lambda: len(talk.replies) == 2)
    assert (talk.replies[-1]["id"], code(talk.replies[-1])) == (7, "ok")
    reply = talk.ask("nothing", 7)
    assert (reply["id"], code(reply)) == (7, "request.unsupported")


def test_hello_tells_all_that_a_client_needs_to_know() -> None:
    release = threading.Event()
    talk = Conversation(load=lambda: release.wait(PATIENCE) and Puppet(), limits=Limits(9, 8, 7, 6))
    expected = {
        "protocol": [1, 1],
        "sidecar": __version__,
        "state": "loading",
        "model": "d" * 64,
        "model_id": "m",
        "model_revision": "1",
        "recipe": "default",
        "resolutions": [224],
        "default_resolution": 224,
        "text_hidden": 1,
        "limits": {
            "max_pixels": 9,
            "max_frame_bytes": 8,
            "max_frames": 8,
            "max_header_bytes": 131_072,
            "max_queue": 7,
            "max_queue_bytes": 6,
        },
    }
    frame = {"v": 1, "id": 5, "ok": True, "outputs": []}
    assert talk.ask("hello", 5) == frame | expected
    release.set()
    assert talk.ready.wait(PATIENCE)
    assert talk.ask("hello", 5) == frame | expected | {"state": "ready"}


def test_stats_tell_what_was_answered_and_what_runs(talk: Conversation) -> None:
    talk.ask("hello", 1)
    talk.ask("nothing", 2)
    stats = talk.ask("stats", 3)
    assert stats["counts"] == {"hello": {"ok": 1}, "unreadable": {"request.unsupported": 1}}
    assert stats["state"] == "ready"
    assert stats["kernels"] == {"on": False, "why": "a puppet has none."}
    assert stats["check"] == {
        "graph": "g.onnx",
        "threads": 0,
        "kleidiai": True,
        "pooled_cosine": None,
        "heatmap_r": None,
    }
    assert (stats["model"], stats["model_id"], stats["model_revision"]) == ("d" * 64, "m", "1")
    assert set(stats["versions"]) == {"numpy", "onnxruntime"}
    assert stats["sidecar"] == __version__


def test_what_a_transport_could_not_take_in_is_answered_without_an_id(talk: Conversation) -> None:
    talk.service.refuse("app", RequestTooLarge("too large."))
    assert talk.replies == [
        {
            "v": 1,
            "id": None,
            "ok": False,
            "error": {"code": "request.too_large", "message": "too large.", "retryable": False},
        }
    ]
    counts = {"unreadable": {"request.too_large": 1}}
    assert talk.ask("stats", 1)["counts"] == counts


def test_a_good_reply_tells_the_model_the_resolution_and_the_times(
    talk: Conversation, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    encoding = Encoding(
        {"pooled_embedding": np.zeros((1, 1), np.float32)},
        (224, 448),
        2,
        preprocess_ms=1.00049,
        inference_ms=2.5,
        drawing_ms=3.54,
        norms=((1.5, 2.5), (3.5, 4.5)),
        flat=(True, False),
    )
    monkeypatch.setattr(talk.puppet, "infer", lambda *_: encoding)
    talk.send("encode", 7, {"image": b"x"})
    until(lambda: talk.replies)
    [reply] = talk.replies
    timing = reply.pop("timing")
    assert reply == {
        "v": 1,
        "id": 7,
        "ok": True,
        "outputs": [{"name": "pooled_embedding", "datatype": "FP32", "shape": [1, 1]}],
        "model": "d" * 64,
        "resolution": [224, 448],
        "norms": [[1.5, 2.5], [3.5, 4.5]],
        "flat": [True, False],
    }
    assert (timing["preprocess_ms"], timing["inference_ms"], timing["drawing_ms"]) == (
        1.0,
        2.5,
        3.54,
    )
    assert 0 <= timing["queue_ms"] < PATIENCE * 1e3
    until(lambda: "answered" in caplog.messages)
    [line] = [record for record in caplog.records if record.getMessage() == "answered"]
    told = vars(line)
    assert (told["request"], told["op"], told["code"]) == (7, "encode", "ok")
    assert (told["preprocess_ms"], told["inference_ms"], told["drawing_ms"]) == (1.0, 2.5, 3.5)
    assert told["total_ms"] >= told["queue_ms"]
    stats = talk.ask("stats", 8)
    assert stats["counts"] == {"encode": {"ok": 1}}
    assert stats["latency"]["224x448"]["inference_ms"]["p50"] == 2.5
    assert stats["latency"]["224x448"]["total_ms"]["p50"] == pytest.approx(
        told["total_ms"], abs=0.1
    )
    assert stats["expected_ms"]["224x448"] == pytest.approx(3.5 / 2, abs=0.1)


def test_a_bug_is_logged_with_its_place_and_its_request(
    talk: Conversation, caplog: pytest.LogCaptureFixture
) -> None:
    talk.puppet.failure = RuntimeError("secret")
    talk.send("encode", 7, {"image": b"x"})
    talk.puppet.finish.set()
    until(lambda: talk.replies)
    [line] = [record for record in caplog.records if record.levelname == "ERROR"]
    assert (line.getMessage(), vars(line)["request"]) == ("a request failed", 7)
    assert line.exc_info is not None
    assert line.exc_info[0] is RuntimeError


def test_failures_of_our_own_are_not_logged_as_bugs(caplog: pytest.LogCaptureFixture) -> None:
    ours = ImageUnreadable("no.")
    assert service.failure(ours, "a request failed") is ours
    assert caplog.records == []
    bug = service.failure(KeyError("secret"), "a message could not be read")
    assert (bug.code, "secret" in str(bug)) == ("internal", False)
    [line] = caplog.records
    assert (line.getMessage(), "request" in vars(line)) == ("a message could not be read", False)
    assert service.failure(MemoryError(), "x").code == "resources.exhausted"


def test_what_is_said_when_a_request_is_not_taken_was_reviewed() -> None:
    said: dict[str, str] = {}
    talk = Conversation(limits=Limits(max_queue=2, max_queue_bytes=1000, max_frame_bytes=900))
    assert talk.ready.wait(PATIENCE)

    def note(name: str, reply: dict[str, Any]) -> None:
        said[name] = reply["error"]["message"]

    note("too large", talk.ask("encode", 1, {"image": bytes(901)}))
    talk.send("encode", 2, {"image": bytes(900)})
    note("in flight", talk.ask("hello", 2))
    note("too many bytes", talk.ask("encode", 3, {"image": bytes(101)}))
    talk.send("encode", 4, {"image": bytes(100)})
    note("too many", talk.ask("encode", 5, {"image": b""}))
    talk.ask("cancel", 6, params={"target": 4})
    note("cancelled", talk.replies[-2])
    talk.puppet.failure = RuntimeError("secret")
    talk.puppet.finish.set()
    until(lambda: talk.replies[-1]["id"] == 2)
    note("a bug", talk.replies[-1])
    talk.service.drain()
    note("at the end", talk.ask("encode", 7, {"image": b""}))
    release = threading.Event()
    loading = Conversation(load=lambda: release.wait() and Puppet())
    note("while the model loads", loading.ask("encode", 1, {"image": b""}))
    release.set()
    messages.check("service", said)


def test_a_reply_that_cannot_be_written_ends_the_service_rather_than_hang(
    talk: Conversation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(protocol, "encode", broken)
    talk.send("encode", 1, {"image": b"x"})
    talk.puppet.finish.set()
    until(lambda: talk.finished)
    assert talk.finished[0] is not None
    assert talk.finished[0].code == "internal"


def test_two_clients_may_use_the_same_ids(talk: Conversation) -> None:
    got: list[tuple[object, dict[str, Any]]] = []
    talk.service._deliver = lambda client, frames: got.append((client, msgpack.unpackb(frames[0])))
    for client in ("a", "b"):
        talk.service.handle(client, message("encode", 1, {"image": b"x"}))
    talk.service.handle("a", message("cancel", 2, params={"target": 1}))
    assert [(client, reply["id"]) for client, reply in got] == [("a", 1), ("a", 2)]
    talk.puppet.finish.set()
    until(lambda: len(got) == 3)
    assert got[-1][0] == "b"
    assert code(got[-1][1]) == "ok"
