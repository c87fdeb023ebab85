"""A peer that does not read costs a bounded amount of memory, and nobody else's time."""

from __future__ import annotations

import threading
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from sidecar import send_buffer, server
from sidecar.errors import SidecarError
from sidecar.handshake import decode_z85
from sidecar.protocol import Frame
from sidecar.send_buffer import SendBuffer
from sidecar.server import Server
from sidecar.settings import Limits

MEGABYTE = 2**20
PATIENCE = 120.0


class Echo:
    """Answers a message with as many megabytes as its first frame says."""

    def __init__(self) -> None:
        self.server: Server
        self.handled = 0

    def handle(self, client: Any, frames: Sequence[Frame]) -> None:
        self.handled += 1
        self.server.deliver(client, [bytes(int(bytes(frames[0])) * MEGABYTE)])


class Running:
    def __init__(self) -> None:
        self.context = zmq.Context()
        self.public, self.secret = zmq.curve_keypair()
        self.echo = Echo()
        self.server = Server(decode_z85(self.public.decode()), Limits())
        self.echo.server = self.server
        self.stopped = threading.Event()
        self.reasons: list[SidecarError | None] = []
        self.server.start(self.echo, self.on_stopped)  # type: ignore[arg-type]

    def on_stopped(self, reason: SidecarError | None) -> None:
        self.reasons.append(reason)
        self.stopped.set()

    def connect(self) -> zmq.Socket[bytes]:
        socket = self.context.socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RCVHWM, 1)
        socket.setsockopt(zmq.RCVBUF, 4096)
        socket.curve_publickey, socket.curve_secretkey = self.public, self.secret
        socket.curve_serverkey = self.server.public_key.encode()
        socket.connect(self.server.endpoint)
        return socket

    def answers(self, socket: zmq.Socket[bytes]) -> bool:
        socket.send(b"0")
        return bool(socket.poll(int(PATIENCE * 1e3))) and socket.recv() == b""


@pytest.fixture
def running() -> Iterator[Running]:
    serving = Running()
    yield serving
    serving.context.destroy(0)
    serving.server.stop()
    assert serving.stopped.wait(PATIENCE)


def test_the_socket_is_bound_as_promised(running: Running) -> None:
    router = running.server._router
    assert router.getsockopt(zmq.MAXMSGSIZE) == 2 * 192 * MEGABYTE
    assert router.getsockopt(zmq.HANDSHAKE_IVL) == 2000
    assert router.getsockopt(zmq.SNDHWM) == router.getsockopt(zmq.RCVHWM) == 4
    assert router.getsockopt(zmq.LINGER) == 1000
    assert router.curve_server
    assert router.zap_domain == b"sidecar"
    host, port = running.server.endpoint.removeprefix("tcp://").split(":")
    assert host == "127.0.0.1"
    assert router.getsockopt(zmq.LAST_ENDPOINT) == f"tcp://127.0.0.1:{port}".encode()


def test_the_server_admits_one_key_and_says_of_another_only_that_there_was_one(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    assert running.answers(running.connect())
    assert caplog.messages == []
    public, secret = running.public, running.secret
    running.public, running.secret = zmq.curve_keypair()
    stranger = running.connect()
    stranger.send(b"0")
    stop = time.monotonic() + PATIENCE
    while not caplog.messages and time.monotonic() < stop:
        time.sleep(0.01)
    assert caplog.messages == ["a peer with another key was turned away"]
    assert running.public.decode() not in caplog.text
    assert not stranger.poll(100)
    stranger.close()
    plain = running.context.socket(zmq.DEALER)
    plain.setsockopt(zmq.LINGER, 0)
    plain.connect(running.server.endpoint)
    plain.send(b"0")
    assert not plain.poll(300)
    plain.close()
    handled = running.echo.handled
    running.public, running.secret = public, secret
    assert running.answers(running.connect())
    assert running.echo.handled == handled + 1


class Zap:
    """The requests of ZeroMQ's own thread (RFC 27), and what it is told."""

    def __init__(self, *credentials: bytes, mechanism: bytes = b"CURVE") -> None:
        head = [b"1.0", b"7", b"sidecar", b"127.0.0.1", b"", mechanism]
        self.request = [*head, *credentials]
        self.reply: list[bytes] = []

    def recv_multipart(self) -> list[bytes]:
        return self.request

    def send_multipart(self, reply: list[bytes]) -> None:
        self.reply = reply


def test_who_is_admitted_as_zeromq_is_told(running: Running) -> None:
    server, key = running.server, running.server._client_key
    socket = server._zap
    try:
        for zap, status in (
            (Zap(key), b"200"),
            (Zap(key[:-1] + b"x"), b"400"),
            (Zap(b""), b"400"),
            (Zap(), b"400"),
            (Zap(key, key), b"400"),
            (Zap(key, mechanism=b"PLAIN"), b"400"),
            (Zap(mechanism=b"NULL"), b"400"),
        ):
            server._zap = zap  # type: ignore[assignment]
            server._authenticate()
            version, id, code, text, user, metadata = zap.reply
            assert (version, id, code) == (b"1.0", b"7", status)
            assert (bool(text), user, metadata) == (True, b"", b"")
    finally:
        server._zap = socket


def test_a_failure_in_the_thread_ends_the_server_with_a_reason(
    running: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a secret")

    monkeypatch.setattr(running.echo, "handle", fail)
    client = running.connect()
    client.send(b"0")
    assert running.stopped.wait(PATIENCE)
    [reason] = running.reasons
    assert reason is not None
    assert (reason.code, "secret" in str(reason)) == ("internal", False)
    [line] = [record for record in caplog.records if record.message == "the server failed"]
    assert line.exc_info is not None
    assert line.exc_info[0] is RuntimeError


def test_after_the_end_nothing_is_sent_and_nothing_fails(running: Running) -> None:
    assert running.answers(running.connect())
    running.server.stop()
    assert running.stopped.wait(PATIENCE)
    assert running.reasons == [None]
    running.server.deliver(b"somebody", [b"x"])
    running.server.stop()


def waiting(server: Server) -> int:
    return sum(box.bytes for box in list(server._buffers.values()))


def test_unread_replies_are_bounded_and_block_nobody(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    deaf, other = running.connect(), running.connect()
    for _ in range(3 * send_buffer.MAX_BYTES // (8 * MEGABYTE)):
        deaf.send(b"8")
        assert running.answers(other)
    while running.echo.handled < 2 * (3 * send_buffer.MAX_BYTES // (8 * MEGABYTE)):
        time.sleep(0.01)
    assert 0 < waiting(running.server) <= send_buffer.MAX_BYTES
    assert "a peer does not fetch its replies; one was dropped" in caplog.messages
    deaf.close()
    end = time.monotonic() + PATIENCE
    while waiting(running.server) and time.monotonic() < end:
        assert running.answers(other)
    assert waiting(running.server) == 0  # it has gone, and its replies with it


def test_unread_replies_of_any_size_take_no_more_memory_than_promised(running: Running) -> None:
    deaf = running.connect()
    tracemalloc.start()
    try:
        for count in range(1, 21):
            deaf.send(b"37")  # a heatmap of 64 megapixels has as many, and more
            while running.echo.handled < count or running.server._outgoing:
                time.sleep(0.001)
            held = tracemalloc.get_traced_memory()[0]
            assert held < send_buffer.MAX_BYTES + 40 * MEGABYTE  # and the one under way
    finally:
        tracemalloc.stop()


def test_a_reply_larger_than_the_bound_still_arrives(running: Running) -> None:
    reader = running.connect()
    megabytes = send_buffer.MAX_BYTES // MEGABYTE + 1
    reader.send(b"%d" % megabytes)
    assert reader.poll(int(PATIENCE * 1e3))
    assert len(reader.recv()) == megabytes * MEGABYTE


def test_a_reader_that_was_slow_gets_all_that_was_kept_in_order(running: Running) -> None:
    slow = running.connect()
    for size in (1, 2, 3, 4, 5, 6, 7, 8):
        slow.send(b"%d" % size)
    while running.echo.handled < 8:
        time.sleep(0.01)
    assert [len(slow.recv()) // MEGABYTE for _ in range(8)] == [1, 2, 3, 4, 5, 6, 7, 8]


def test_what_was_sent_before_the_end_is_answered(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "LINGER_MS", PATIENCE * 1e3)  # a busy machine may need it
    reader = running.connect()
    assert running.answers(reader)
    for _ in range(50):
        reader.send(b"0")
    while running.echo.handled < 2:
        time.sleep(0.001)
    running.server.stop()
    assert running.stopped.wait(PATIENCE)
    for _ in range(running.echo.handled - 1):  # all that was read was answered
        assert reader.poll(int(PATIENCE * 1e3))
        assert reader.recv() == b""
    assert not reader.poll(0)


@given(st.lists(st.integers(0, 5000)))
def test_a_send_buffer_keeps_order_and_bound(sizes: list[int]) -> None:
    box = SendBuffer(max_bytes=10_000)
    kept = [size for size in sizes if box.put([bytes(size)])]
    assert box.bytes <= max(10_000, 5000 + send_buffer.OVERHEAD)
    assert bool(kept) == bool(sizes)
    for size in kept:
        assert len(box.first()[0]) == size
        box.sent(lambda: True)
    assert (len(box), box.empty, box.bytes) == (0, True, 0)


def test_a_reply_counts_until_the_transport_lets_go_of_it() -> None:
    box, held = SendBuffer(max_bytes=10_000), [True]
    assert box.put([bytes(8000)])
    box.sent(lambda: not held)
    assert (len(box), box.empty) == (0, False)
    assert not box.put([bytes(8000)])
    held.clear()
    assert box.put([bytes(8000)])
