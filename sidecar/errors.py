"""Every failure the sidecar can report. A code is a promise: add one, never rename or reuse one.

`tests/golden/codes.txt` holds every code ever issued; `electron_bridge/src/errors.ts` is the twin.
"""

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


class TensorShape(SidecarError):
    code = "tensor.shape"


class TensorNotFinite(SidecarError):
    code = "tensor.not_finite"


class ModelLoading(SidecarError):
    code = "model.loading"
    retryable = True


class ModelInvalid(SidecarError):
    code = "model.invalid"


class Busy(SidecarError):
    code = "busy"
    retryable = True


class Internal(SidecarError):
    code = "internal"
