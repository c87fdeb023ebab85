"""The one line that a parent writes on our stdin, and the lines that we answer with on stdout.

Pure: bytes in, values out; no sockets. docs/protocol.md shows a whole conversation.
"""

import json
import struct
from dataclasses import dataclass
from typing import Any

from sidecar import protocol
from sidecar.errors import HandshakeMalformed, ProtocolVersion, SidecarError

MAX_LINE = 4096  # bytes
TIMEOUT_S = 10

_EXPECTED = (
    'expected one line of JSON on stdin, {"protocol": [lowest, highest], "client_public_key": '
    '"<40 characters of Z85>"}'
)
_Z85 = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
_HINT = "`serve` is started by an app; in a terminal, use `encode` or `stdio`."


@dataclass(frozen=True, slots=True)
class Request:
    """What the parent asks for. `protocol` is the highest version that both speak; `client_key` is
    the CURVE public key, 32 bytes.
    """

    protocol: int
    client_key: bytes


def parse(line: bytes) -> Request:
    """Read the parent's line. Raises HandshakeMalformed, ProtocolVersion."""
    if not line:
        raise HandshakeMalformed(f"{_EXPECTED}; stdin ended before one came. {_HINT}")
    if len(line) > MAX_LINE:
        raise HandshakeMalformed(f"{_EXPECTED}, of at most {MAX_LINE} bytes; more came.")
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise HandshakeMalformed(f"{_EXPECTED}; something else came. {_HINT}") from error
    match fields:
        case {"protocol": [int(lowest), int(highest)], "client_public_key": str(key)} if (
            type(lowest) is type(highest) is int  # a bool is one too, says Python
        ):
            pass
        case _:
            raise HandshakeMalformed(f"{_EXPECTED}; other keys or types came.")
    if not lowest <= protocol.VERSION <= highest:
        raise ProtocolVersion(
            f"the app speaks protocol versions {lowest} to {highest}, this sidecar "
            f"{protocol.VERSION} to {protocol.VERSION}. Ship the bridge and the sidecar of one "
            "release."
        )
    try:
        return Request(protocol.VERSION, decode_z85(key))
    except ValueError as error:
        raise HandshakeMalformed(f"{_EXPECTED}; the key is not one.") from error


def late() -> HandshakeMalformed:
    """The error where no line came in time."""
    return HandshakeMalformed(f"{_EXPECTED}; none came within {TIMEOUT_S} s. {_HINT}")


def listening(request: Request, endpoint: str, public_key: str, pid: int) -> bytes:
    return _line(
        event="listening",
        protocol=request.protocol,
        endpoint=endpoint,
        server_public_key=public_key,
        pid=pid,
    )


def ready() -> bytes:
    return _line(event="ready")


def fatal(error: SidecarError) -> bytes:
    return _line(event="fatal", code=error.code, message=str(error))


def decode_z85(text: str) -> bytes:
    """The 32 bytes of a key of 40 characters (ZeroMQ RFC 32). Raises ValueError."""
    if len(text) != 40:
        raise ValueError("a Z85 key has 40 characters")
    key = b""
    for start in range(0, 40, 5):
        value = 0
        for character in text[start : start + 5]:
            value = value * 85 + _Z85.index(character)
        try:
            key += struct.pack(">I", value)
        except struct.error as error:
            raise ValueError("five characters of Z85 hold no more than 32 bits") from error
    return key


def _line(**fields: Any) -> bytes:
    return json.dumps(fields).encode() + b"\n"
