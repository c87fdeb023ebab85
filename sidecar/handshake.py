"""The one line that a parent writes on our stdin, and the lines that we answer with on stdout.

Pure: text in, values out. docs/protocol.md shows a whole conversation.
"""

import json
from dataclasses import dataclass
from typing import Any

from sidecar import protocol
from sidecar.errors import HandshakeMalformed, ProtocolVersion, SidecarError
from sidecar.server import client_key

MAX_LINE = 4096  # bytes
TIMEOUT_S = 10

_EXPECTED = (
    'expected one line of JSON on stdin, {"protocol": [lowest, highest], "client_public_key": '
    '"<40 characters of Z85>"}'
)
_HINT = "`serve` is started by an app; in a terminal, use `encode` or `stdio`."


@dataclass(frozen=True, slots=True)
class Offer:
    protocol: int  # the highest version that both speak
    client_key: bytes


def parse(line: bytes) -> Offer:
    """Raises HandshakeMalformed, ProtocolVersion."""
    if not line:
        raise HandshakeMalformed(f"{_EXPECTED}; stdin ended before one came. {_HINT}")
    if len(line) > MAX_LINE:
        raise HandshakeMalformed(f"{_EXPECTED}, of at most {MAX_LINE} bytes; more came.")
    try:
        offer = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise HandshakeMalformed(f"{_EXPECTED}; something else came. {_HINT}") from error
    match offer:
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
        return Offer(protocol.VERSION, client_key(key))
    except ValueError as error:
        raise HandshakeMalformed(f"{_EXPECTED}; the key is not one.") from error


def late() -> HandshakeMalformed:
    return HandshakeMalformed(f"{_EXPECTED}; none came within {TIMEOUT_S} s. {_HINT}")


def listening(offer: Offer, endpoint: str, public_key: str, pid: int) -> bytes:
    return _line(
        event="listening",
        protocol=offer.protocol,
        endpoint=endpoint,
        server_public_key=public_key,
        pid=pid,
    )


def ready() -> bytes:
    return _line(event="ready")


def fatal(error: SidecarError) -> bytes:
    return _line(event="fatal", code=error.code, message=str(error))


def _line(**fields: Any) -> bytes:
    return json.dumps(fields).encode() + b"\n"
