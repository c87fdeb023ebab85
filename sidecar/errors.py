"""Every failure the sidecar can report. A code is a promise: add one, never rename or reuse one.

`tests/golden/codes.txt` holds every code ever issued; `electron_bridge/src/errors.ts` is the twin.
"""

import errno
import re
from typing import ClassVar


class SidecarError(Exception):
    """Root of everything we raise on purpose. `code` is for programs, the message for people.

    A message says what was expected, what came and what to do; it never carries pixels, image
    paths or keys.
    """

    code: ClassVar[str]
    retryable: ClassVar[bool] = False  # would the same request, sent again later, have a chance?


class HandshakeMalformed(SidecarError):
    code = "handshake.malformed"


class ProtocolVersion(SidecarError):
    code = "protocol.version"


class RequestMalformed(SidecarError):
    code = "request.malformed"


class RequestUnsupported(SidecarError):
    code = "request.unsupported"


class RequestTooLarge(SidecarError):
    code = "request.too_large"


class RequestCancelled(SidecarError):
    code = "request.cancelled"


class RequestDuplicateId(SidecarError):
    code = "request.duplicate_id"


class ImageUnreadable(SidecarError):
    code = "image.unreadable"


class ImageTooLarge(SidecarError):
    code = "image.too_large"


class ImageTooCostly(SidecarError):
    code = "image.too_costly"


class TensorShape(SidecarError):
    code = "tensor.shape"


class TensorNotFinite(SidecarError):
    code = "tensor.not_finite"


class ModelLoading(SidecarError):
    code = "model.loading"
    retryable = True


class ModelInvalid(SidecarError):
    code = "model.invalid"


class ModelUnfaithful(SidecarError):
    code = "model.unfaithful"


class ResourcesExhausted(SidecarError):
    code = "resources.exhausted"
    retryable = True


class CollectionNotFound(SidecarError):
    code = "collection.not_found"


class CollectionMismatch(SidecarError):
    code = "collection.mismatch"


class CollectionUnreadable(SidecarError):
    code = "collection.unreadable"


class CollectionBusy(SidecarError):
    code = "collection.busy"
    retryable = True


class CollectionExists(SidecarError):
    code = "collection.exists"


class CollectionReadOnly(SidecarError):
    code = "collection.read_only"


class CollectionDiskFull(SidecarError):
    code = "collection.disk_full"


class Busy(SidecarError):
    code = "busy"
    retryable = True


class Internal(SidecarError):
    code = "internal"


_MEMORY = "memory"
_DESCRIPTORS = "file descriptors"
_ERRNO = {errno.ENOMEM: _MEMORY, errno.EMFILE: _DESCRIPTORS, errno.ENFILE: _DESCRIPTORS}
# How native libraries put it: C++'s bad_alloc, onnxruntime's allocator, the system's strerror.
_WORDS = (
    (re.compile(r"bad.alloc|failed to allocate|cannot allocate|not enough memory", re.I), _MEMORY),
    (re.compile(r"too many open files", re.I), _DESCRIPTORS),
)


def exhausted(error: BaseException) -> ResourcesExhausted | None:
    """The error to report where `error`, or what it came from, says that memory or descriptors ran
    out; None where it says anything else.
    """
    cause: BaseException | None = error
    while cause is not None:
        lacking = _lacking(cause)
        if lacking:
            return ResourcesExhausted(
                f"the machine has no {lacking} left for this. Close other programs, or try again "
                "later."
            )
        cause = cause.__cause__
    return None


def _lacking(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return _MEMORY
    number = getattr(error, "errno", None)  # OSError's, and ZeroMQ's
    if number in _ERRNO:
        return _ERRNO[number]
    text = str(error)
    return next((lacking for words, lacking in _WORDS if words.search(text)), "")
