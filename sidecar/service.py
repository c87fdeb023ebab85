"""The bounded queue and its workers. The only place where an exception becomes a reply.

Transports hand in frames with a name for their sender, and get replies back through `deliver`; a
reply may come from any thread. The service knows no sockets.
"""

import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from typing import Any

from sidecar import __version__, image_header, protocol
from sidecar.collection_ops import CollectionOps
from sidecar.encoder import Encoder, Encoding, Prepared
from sidecar.errors import (
    Busy,
    Internal,
    ModelLoading,
    RequestCancelled,
    RequestDuplicateId,
    RequestTooLarge,
    SidecarError,
    exhausted,
)
from sidecar.job import ImageFile
from sidecar.manifest import Manifest
from sidecar.protocol import (
    Cancel,
    Done,
    Encode,
    Failed,
    Frame,
    Hello,
    Reply,
    Shutdown,
    Stats,
    Unreadable,
    Work,
)
from sidecar.session import VERSIONS, Run
from sidecar.settings import Limits
from sidecar.stats import Stats as Statistics

log = logging.getLogger(__name__)

RGB_BYTES = 3  # of one pixel
IDLE_S = 10  # after that, collections are closed: others may open or copy them
CLOSE_S = 0.5

BUG = "a bug in the sidecar; its log says where."

Client = Hashable
Deliver = Callable[[Client, list[Frame]], None]


@dataclass(slots=True, eq=False)
class Task:
    """An accepted request for work, until nobody works on it any more."""

    client: Client
    request: Work
    accepted: float = field(default_factory=time.perf_counter)
    run: Run = field(default_factory=Run)
    prepared: Future[Prepared] = field(default_factory=Future)
    preparing: bool = False  # the preparer holds its payload
    bytes: int = 0  # its payloads, and its picture once decoded: its part of the queue's bytes


class Service:
    """Starts `loading`; `load` runs on the worker's thread and makes it `ready`.

    Every request gets exactly one reply. One is owed as long as its key is in `_open`: whoever
    takes it out, under the lock, answers.
    """

    def __init__(
        self,
        manifest: Manifest,
        load: Callable[[], Encoder],
        limits: Limits,
        deliver: Deliver,
        on_ready: Callable[[], None],
        on_finished: Callable[[SidecarError | None], None],
    ) -> None:
        self.manifest = manifest
        self.limits = limits
        self._load = load
        self._deliver = deliver
        self._on_ready = on_ready
        self._on_finished = on_finished  # all is answered and no more will be, or why none can be
        self._changed = threading.Condition()
        self._queue: deque[Task] = deque()
        self._current: Task | None = None  # being worked on, no longer in the queue
        self._open: dict[tuple[Client, int], Task] = {}
        self._bytes = 0  # of the payloads of tasks that the queue or a thread still holds
        self._ending = False  # no new work
        self._draining = False  # no new work, but what was accepted is still done
        self._encoder: Encoder | None = None
        self._statistics = Statistics()
        self._collections = CollectionOps(manifest)  # the worker's
        self._worker = threading.Thread(target=self._work, name="model", daemon=True)
        self._preparer = threading.Thread(target=self._prepare, name="images", daemon=True)

    @property
    def state(self) -> str:
        return "loading" if self._encoder is None else "ready"

    def start(self) -> None:
        """Begin to load the model."""
        self._worker.start()

    def handle(self, client: Client, frames: Sequence[Frame]) -> None:
        """Take one message. Returns soon: what takes long is done by the worker."""
        try:
            request = protocol.decode(frames)
        except Unreadable as unreadable:
            self._answer(client, "unreadable", self._owned(client, unreadable.reply))
            return
        except Exception as error:
            self.refuse(client, failure(error, "a message could not be read"))
            return
        try:
            self._handle(client, request)
        except Exception as error:
            reply = Failed(request.id, failure(error, "a message could not be handled"))
            self._answer(client, request.op, reply)

    def _handle(self, client: Client, request: protocol.Request) -> None:
        if (client, request.id) in self._open:
            self._answer(client, request.op, _duplicate(request.id))
            return
        match request:
            case Hello():
                self._answer(client, request.op, Done(request.id, fields=self._hello()))
            case Stats():
                self._answer(client, request.op, Done(request.id, fields=self._stats()))
            case Cancel():
                cancelled = self._cancel(client, request.target)
                self._answer(client, request.op, Done(request.id, fields={"cancelled": cancelled}))
            case Shutdown():
                self._cancel_all()
                self._answer(client, request.op, Done(request.id))
                self._on_finished(None)
            case _:
                try:
                    self._accept(Task(client, request))
                except SidecarError as error:
                    self._answer(client, request.op, Failed(request.id, error))

    def _owned(self, client: Client, reply: Failed) -> Failed:
        """The same reply, unless its id belongs to a request that is owed another one."""
        if reply.id is None or (client, reply.id) not in self._open:
            return reply
        return _duplicate(reply.id)

    def refuse(self, client: Client, error: SidecarError) -> None:
        """Answer what a transport could not take in as a message."""
        self._answer(client, "unreadable", Failed(None, error))

    def end(self) -> None:
        """Take no new work, cancel all that is pending, and finish: a run that winds down, or a
        model that still loads, is not waited for.
        """
        self._cancel_all()
        if self._collections.any_open:
            self._worker.join(CLOSE_S)  # it closes them; else the next who opens them does
        self._on_finished(None)

    def drain(self) -> None:
        """Take no new work, do all that was accepted, and finish."""
        with self._changed:
            self._draining = True
            self._changed.notify_all()

    def _accept(self, task: Task) -> None:
        with self._changed:
            if self._ending or self._draining:
                raise RequestCancelled("the sidecar is shutting down.")
            if self._encoder is None:
                raise ModelLoading("the model is loading. Wait for the ready event, or try again.")
            allowed = min(self.limits.max_frame_bytes, self.limits.max_queue_bytes)
            if task.request.bytes > allowed:
                raise RequestTooLarge(
                    f"the request has {task.request.bytes} bytes of input; {allowed} are allowed. "
                    "Send fewer or smaller images at a time."
                )
            task.bytes = task.request.bytes + self._decoded_bytes(task.request)
            if len(self._open) >= self.limits.max_queue or (
                self._bytes and self._bytes + task.bytes > self.limits.max_queue_bytes
            ):
                raise Busy(
                    f"{len(self._open)} requests with {self._bytes} bytes are waiting, and no more "
                    f"than {self.limits.max_queue} with {self.limits.max_queue_bytes} may. "
                    "Try again when one has been answered."
                )
            self._open[task.client, task.request.id] = task
            self._bytes += task.bytes
            self._enqueue(task)
            self._changed.notify_all()

    def _decoded_bytes(self, request: Work) -> int:
        """The bytes of an image file's pixels; 0 where its header is not understood, so that the
        decoder will refuse it. Raises ImageTooLarge, ImageUnreadable.
        """
        source = None if request.job is None else request.job.input
        size = image_header.size(source.data) if isinstance(source, ImageFile) else None
        if size is None:
            return 0
        image_header.check_size(*size, self.limits.max_pixels)
        return size[0] * size[1] * RGB_BYTES

    def _enqueue(self, task: Task) -> None:
        """In the order they came, but those of low priority behind all others."""
        low = sum(waiting.request.low for waiting in self._queue)
        self._queue.insert(len(self._queue) - (0 if task.request.low else low), task)

    def _cancel_all(self) -> None:
        with self._changed:
            self._ending = True
            keys = list(self._open)
            self._changed.notify_all()
        for client, id in keys:
            self._cancel(client, id)

    def _cancel(self, client: Client, id: int) -> bool:
        with self._changed:
            task = self._open.pop((client, id), None)
            if task is None:
                return False
            if task in self._queue:
                self._queue.remove(task)
                self._release(task)
                self._changed.notify_all()
        task.run.terminate()
        error = RequestCancelled("the request was cancelled.")
        self._answer(client, task.request.op, Failed(id, error))
        return True

    def _close(self, task: Task) -> bool:
        """True if a reply is still owed; a client may reuse the id of a request it cancelled."""
        key = (task.client, task.request.id)
        with self._changed:
            owed = self._open.get(key) is task
            if owed:
                del self._open[key]
        return owed

    def _work(self) -> None:
        try:
            encoder = self._load()
            with self._changed:
                self._encoder = encoder
                if not self._ending:
                    self._on_ready()
            self._preparer.start()
            self._perform_all(encoder)
        except Exception as error:
            self._on_finished(failure(error, "the worker failed"))
        else:
            if not self._ending:  # else `end` or a shutdown still has a reply to give
                self._on_finished(None)

    def _perform_all(self, encoder: Encoder) -> None:
        try:
            while True:
                if not self._wait():
                    self._collections.close()
                elif not self._perform_next(encoder):
                    return
        finally:
            self._collections.close()

    def _wait(self) -> bool:
        """For a task or the end; False where collections are open and nobody asked for a while."""
        idle = IDLE_S if self._collections.any_open else None
        with self._changed:
            return self._changed.wait_for(
                lambda: bool(self._queue) or self._ending or self._draining, idle
            )

    def _next(self) -> Task | None:
        with self._changed:
            while not self._queue:
                if self._ending or self._draining:
                    return None
                self._changed.wait()
            self._current = self._queue.popleft()
            self._changed.notify_all()
            return self._current

    def _prepare(self) -> None:
        assert self._encoder is not None
        while True:
            with self._changed:
                task = self._changed.wait_for(self._unprepared)
                assert task is not None
                task.preparing = True
            try:
                task.run.check()
                assert task.request.job is not None
                task.prepared.set_result(self._encoder.prepare(task.request.job, task.run))
            except BaseException as error:
                task.prepared.set_exception(error)
            with self._changed:
                task.preparing = False
                self._release(task)
            del task  # its payload must not wait with us

    def _unprepared(self) -> Task | None:
        """What to prepare: the current task, else the first of the queue. No more than that:
        prepared images take more memory than the payloads that the queue counts.
        """
        for task in (self._current, *itertools.islice(self._queue, 1)):
            if task is None or task.request.job is None:
                continue
            if not task.preparing and not task.prepared.done():
                return task
        return None

    def _release(self, task: Task) -> None:
        """Count the payload no longer, if nobody holds it; call this whenever somebody lets go."""
        held = task.preparing or task is self._current or task in self._queue
        if not held:
            self._bytes -= task.bytes
            task.bytes = 0

    def _perform_next(self, encoder: Encoder) -> bool:
        """Wait for a task and do it; False at the end."""
        task = self._next()
        if task is None:
            return False
        begun = time.perf_counter()
        reply: Reply
        timing: dict[str, float] = {}
        encoding: Encoding | None = None
        try:
            request = task.request
            if isinstance(request, Encode):
                encoding = encoder.infer(task.prepared.result(), task.run)
                timing = _timing(task, begun, encoding)
                reply = _done(request.id, encoding, self.manifest.digest, timing)
            else:
                collection = self._collections.open(request)
                if request.job is not None:
                    encoding = encoder.infer(task.prepared.result(), task.run)
                    timing = _timing(task, begun, encoding)
                task.run.check()
                arrays, fields = self._collections.perform(request, collection, encoding)
                if encoding is not None:
                    done = _done(request.id, encoding, self.manifest.digest, timing)
                    arrays, fields = {**done.arrays, **arrays}, {**done.fields, **fields}
                reply = Done(request.id, arrays, fields)
        except Exception as error:
            task.run.terminate()  # what was prepared for it is not needed
            reply = Failed(task.request.id, failure(error, "a request failed", task.request.id))
        with self._changed:
            self._current = None
            self._release(task)
            if encoding is not None:
                timing["total_ms"] = (time.perf_counter() - task.accepted) * 1e3
                self._statistics.time(encoding.resolution, encoding.images, timing)
        if self._close(task):
            self._answer(task.client, task.request.op, reply, timing)
        return True

    def _answer(
        self, client: Client, op: str, reply: Reply, timing: dict[str, float] | None = None
    ) -> None:
        code = reply.error.code if isinstance(reply, Failed) else "ok"
        with self._changed:
            self._statistics.count(op, code)
        self._deliver(client, protocol.encode(reply))
        rounded = {name: round(value, 1) for name, value in (timing or {}).items()}
        log.info("answered", extra={"request": reply.id, "op": op, "code": code, **rounded})

    def _hello(self) -> dict[str, Any]:
        return {
            "protocol": [protocol.VERSION, protocol.VERSION],
            "sidecar": __version__,
            "state": self.state,
            "model": self.manifest.digest,
            "model_id": self.manifest.model_id,
            "model_revision": self.manifest.revision,
            "recipe": self.manifest.recipe,
            "resolutions": list(self.manifest.resolutions),
            "default_resolution": self.manifest.default_resolution,
            "text_hidden": self.manifest.text_hidden,
            "limits": {
                "max_pixels": self.limits.max_pixels,
                "max_frame_bytes": self.limits.max_frame_bytes,
                "max_frames": protocol.MAX_FRAMES,
                "max_header_bytes": protocol.MAX_HEADER,
                "max_queue": self.limits.max_queue,
                "max_queue_bytes": self.limits.max_queue_bytes,
            },
        }

    def _choice(self) -> dict[str, Any]:
        if self._encoder is None:
            return {"kernels": None, "check": None}
        choice = self._encoder.choice
        return {
            "kernels": asdict(choice.custom_ops),
            "check": {
                "graph": choice.graph,
                "threads": choice.threads,
                "kleidiai": choice.kleidiai,
                "pooled_cosine": choice.check.pooled_cosine,
                "heatmap_r": choice.check.heatmap_r,
            },
        }

    def _stats(self) -> dict[str, Any]:
        with self._changed:
            return {
                "state": self.state,
                "sidecar": __version__,
                "model": self.manifest.digest,
                "model_id": self.manifest.model_id,
                "model_revision": self.manifest.revision,
                "versions": VERSIONS,
                **self._choice(),
                "queue": {"requests": len(self._open), "bytes": self._bytes},
                "decoders": None if self._encoder is None else self._encoder.decoders.report(),
                **self._statistics.report(),
            }


def _duplicate(id: int) -> Failed:
    error = RequestDuplicateId(
        f"the id {id} is still in flight. Give every request an id of its own."
    )
    return Failed(None, error, duplicate_of=id)


def failure(error: Exception, what: str, id: int | None = None) -> SidecarError:
    """What a peer is told of an exception: itself, if it is ours; else a line goes to the log."""
    if isinstance(error, SidecarError):
        return error
    log.error(what, exc_info=error, extra={} if id is None else {"request": id})
    return exhausted(error) or Internal(BUG)


def _timing(task: Task, begun: float, encoding: Encoding) -> dict[str, float]:
    return {
        "queue_ms": (begun - task.accepted) * 1e3,
        "preprocess_ms": encoding.preprocess_ms,
        "inference_ms": encoding.inference_ms,
        "drawing_ms": encoding.drawing_ms,
    }


def _done(id: int, encoding: Encoding, digest: str, timing: dict[str, float]) -> Done:
    return Done(
        id,
        arrays=encoding.arrays,
        fields={
            "model": digest,
            "resolution": list(encoding.resolution),
            "norms": [list(low_high) for low_high in encoding.norms],
            "flat": list(encoding.flat),
            "timing": {name: round(value, 3) for name, value in timing.items()},
        },
    )
