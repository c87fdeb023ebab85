"""The ROUTER loop: frames between the service and the one client whose key was pinned.

Every peer must speak CURVE; our ZAP handler (ZeroMQ RFC 27) then lets in that one client key. The
socket lives in one thread; replies from others reach it through a queue and a wake-up.
"""

import hmac
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

import zmq

from sidecar.errors import SidecarError
from sidecar.protocol import Frame
from sidecar.send_buffer import SendBuffer
from sidecar.service import Client, Service, failure
from sidecar.settings import Limits

log = logging.getLogger(__name__)

LINGER_MS = 1000
HANDSHAKE_MS = 2000
QUEUED_MESSAGES = 4  # that ZeroMQ holds for one peer; the send buffer counts them too
SLACK = 2  # frames up to this many times too large get an answer; larger ones end the connection
RETRY_MS = 20


class Server:
    """Bound from the start; `endpoint` and `public_key` are for the handshake's answer.

    `client_key` is the client's public key, 32 bytes.
    """

    def __init__(self, client_key: bytes, limits: Limits) -> None:
        public, secret = zmq.curve_keypair()
        self.public_key = public.decode()
        self._client_key = client_key
        self._context = zmq.Context()
        self._zap = self._context.socket(zmq.REP)
        self._zap.bind("inproc://zeromq.zap.01")  # before the ROUTER: it must never run unguarded
        self._wake_in = self._context.socket(zmq.PAIR)
        self._wake_in.bind("inproc://wake")
        self._wake_out = self._context.socket(zmq.PAIR)
        self._wake_out.connect("inproc://wake")
        self._wake_lock = threading.Lock()
        self._outgoing: deque[tuple[Client, list[Frame]]] = deque()
        self._buffers: dict[bytes, SendBuffer] = {}
        self._stopping = False

        router = self._context.socket(zmq.ROUTER)
        router.curve_server = True
        router.curve_publickey = public
        router.curve_secretkey = secret
        router.zap_domain = b"sidecar"
        router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        router.setsockopt(zmq.MAXMSGSIZE, SLACK * limits.max_frame_bytes)
        router.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
        router.setsockopt(zmq.SNDHWM, QUEUED_MESSAGES)
        router.setsockopt(zmq.RCVHWM, QUEUED_MESSAGES)
        router.setsockopt(zmq.LINGER, LINGER_MS)
        port = router.bind_to_random_port("tcp://127.0.0.1")
        self.endpoint = f"tcp://127.0.0.1:{port}"
        self._router = router

    def deliver(self, client: Client, frames: list[Frame]) -> None:
        """Queue a reply; from any thread."""
        self._outgoing.append((client, frames))
        self._wake()

    def start(self, service: Service, on_stopped: Callable[[SidecarError | None], None]) -> None:
        """Serve in a thread of its own until `stop`, then flush and call `on_stopped`; with the
        reason, if it was not `stop` that ended it.
        """

        def serve() -> None:
            try:
                self._serve(service)
            except Exception as error:
                on_stopped(failure(error, "the server failed"))
            else:
                on_stopped(None)

        threading.Thread(target=serve, name="zmq", daemon=True).start()

    def stop(self) -> None:
        """Send what is queued, within the linger time, and end; from any thread."""
        self._stopping = True
        self._wake()

    def _wake(self) -> None:
        with self._wake_lock:
            try:
                self._wake_out.send(b"", zmq.NOBLOCK)
            except zmq.Again:
                pass  # a thousand wake-ups wait already
            except zmq.ZMQError:
                pass  # closed: nothing is sent any more

    def _serve(self, service: Service) -> None:
        poller = zmq.Poller()
        for socket in (self._router, self._zap, self._wake_in):
            poller.register(socket, zmq.POLLIN)
        while not self._stopping:
            ready = dict(poller.poll(RETRY_MS if self._buffers else None))
            if self._zap in ready:
                self._authenticate()
            if self._wake_in in ready:
                self._wake_in.recv()
            if self._router in ready:
                self._receive(service)
            self._send_all()
        end = time.monotonic() + LINGER_MS / 1e3
        while self._router.poll(0) and time.monotonic() < end:
            self._receive(service)  # what came before the end is owed an answer, too
        self._send_all()
        while self._buffers and time.monotonic() < end:
            time.sleep(RETRY_MS / 1e3)
            self._send_all()
        left = max(end - time.monotonic(), 0)
        with self._wake_lock:
            self._context.destroy(int(left * 1e3))

    def _receive(self, service: Service) -> None:
        identity, *frames = self._router.recv_multipart(copy=False)
        service.handle(identity.bytes, [frame.buffer for frame in frames])

    def _authenticate(self) -> None:
        version, request_id, _domain, _address, _identity, mechanism, *credentials = (
            self._zap.recv_multipart()
        )
        known = (
            mechanism == b"CURVE"
            and len(credentials) == 1
            and hmac.compare_digest(credentials[0], self._client_key)
        )
        if not known:
            log.warning("a peer with another key was turned away")
        status = (b"200", b"OK") if known else (b"400", b"this key is not the client's")
        self._zap.send_multipart([version, request_id, *status, b"", b""])

    def _send_all(self) -> None:
        while self._outgoing:
            client, frames = self._outgoing.popleft()
            assert isinstance(client, bytes)
            if not self._buffers.setdefault(client, SendBuffer()).put(frames):
                log.warning("a peer does not fetch its replies; one was dropped")
        for client in list(self._buffers):
            if self._flush(client):
                del self._buffers[client]

    def _flush(self, client: bytes) -> bool:
        """Send what this peer takes; True if nothing of it is held any more."""
        buffer = self._buffers[client]
        while buffer:
            frames = [zmq.Frame(frame, track=True) for frame in buffer.first()]
            try:
                self._router.send_multipart([client, *frames], zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return False
            except zmq.ZMQError as error:
                if error.errno != zmq.EHOSTUNREACH:
                    raise
                return True  # it has gone, and its replies with it
            trackers = [frame.tracker for frame in frames]
            buffer.sent(partial(_released, trackers))
        return buffer.empty


def _released(trackers: Sequence[zmq.MessageTracker]) -> bool:
    """True once ZeroMQ holds none of the frames."""
    return all(tracker.done for tracker in trackers)
