"""The one line a parent writes, and what is made of it."""

import json
from typing import Any

import pytest
import zmq
import zmq.utils.z85 as z85
from hypothesis import given
from hypothesis import strategies as st

from sidecar import handshake
from sidecar.errors import HandshakeMalformed, ProtocolVersion, SidecarError
from tests.sidecar import messages
from tests.sidecar.test_manifest import JSON

PUBLIC, SECRET = zmq.curve_keypair()


def line(**changes: Any) -> bytes:
    return (
        json.dumps({"protocol": [1, 1], "client_public_key": PUBLIC.decode()} | changes).encode()
        + b"\n"
    )


HANDSHAKES = {
    "end of file": (b"", "handshake.malformed"),
    "an empty line": (b"\n", "handshake.malformed"),
    "text": (b"hello\n", "handshake.malformed"),
    "a list": (b"[1, 1]\n", "handshake.malformed"),
    "lists in lists": (b"[" * 4000 + b"\n", "handshake.malformed"),
    "no key": (b'{"protocol": [1, 1]}\n', "handshake.malformed"),
    "no protocol": (line(protocol=None), "handshake.malformed"),
    "one version": (line(protocol=1), "handshake.malformed"),
    "versions that are true": (line(protocol=[True, True]), "handshake.malformed"),
    "versions that are text": (line(protocol=["1", "1"]), "handshake.malformed"),
    "a key too short": (line(client_public_key="abc"), "handshake.malformed"),
    "a key that is not Z85": (line(client_public_key="'" * 40), "handshake.malformed"),
    "a key beyond 32 bits": (line(client_public_key="#" * 40), "handshake.malformed"),
    "a key beyond ASCII": (line(client_public_key="ä" * 40), "handshake.malformed"),
    "a line too long": (line(padding="x" * 5000), "handshake.malformed"),
    "not UTF-8": (b"\xff\xfe\n", "handshake.malformed"),
    "only later versions": (line(protocol=[2, 4]), "protocol.version"),
    "only earlier versions": (line(protocol=[0, 0]), "protocol.version"),
}


@pytest.mark.parametrize(("line", "code"), HANDSHAKES.values(), ids=HANDSHAKES)
def test_it_is_refused_when_it_is(line: bytes, code: str) -> None:
    with pytest.raises(SidecarError) as refused:
        handshake.parse(line)
    assert refused.value.code == code
    assert "client_public_key" in str(refused.value) or code == "protocol.version"


def test_what_is_said_of_each_was_reviewed() -> None:
    said = {"none in time": str(handshake.late())}
    for name, (line, _) in HANDSHAKES.items():
        with pytest.raises(SidecarError) as refused:
            handshake.parse(line)
        said[name] = str(refused.value)
    messages.check("handshake", said)


def padded(size: int) -> bytes:
    """A good line of so many bytes, with its end."""
    return line(padding="x" * (size - len(line(padding=""))))


def test_a_line_of_4096_bytes_is_read_and_a_longer_one_is_not() -> None:
    assert len(padded(4096)) == 4096
    assert handshake.parse(padded(4096)).protocol == 1
    with pytest.raises(HandshakeMalformed, match="at most 4096 bytes"):
        handshake.parse(padded(4097))


def test_a_key_is_decoded_as_zeromq_does_it() -> None:
    for _ in range(50):
        public, _secret = zmq.curve_keypair()
        assert handshake.decode_z85(public.decode()) == z85.decode(public)
    largest = "%nSc0" * 8  # of 32 bits
    assert handshake.decode_z85(largest) == b"\xff" * 32


@pytest.mark.parametrize("key", ["%nSc1" * 8, "0" * 39, "0" * 41, "0" * 39 + "~", ""], ids=repr)
def test_what_is_no_key_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match=r"Z85|substring"):
        handshake.decode_z85(key)


def test_a_refusal_repeats_nothing_that_came() -> None:
    with pytest.raises(HandshakeMalformed) as refused:
        handshake.parse(line(client_public_key=SECRET.decode() + "x"))
    assert SECRET.decode() not in str(refused.value)


def test_a_version_mismatch_names_both_ranges() -> None:
    with pytest.raises(ProtocolVersion, match=r"2 to 4.*1 to 1"):
        handshake.parse(line(protocol=[2, 4]))


@pytest.mark.parametrize("versions", [[1, 1], [0, 1], [1, 9], [0, 9]], ids=str)
def test_a_range_that_holds_our_version_is_fine(versions: list[int]) -> None:
    offer = handshake.parse(line(protocol=versions))
    assert offer.protocol == 1
    assert len(offer.client_key) == 32


@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_other_line_is_refused_by_code(line: bytes) -> None:
    with pytest.raises(HandshakeMalformed):
        handshake.parse(line)


def test_what_we_answer_is_a_line_each() -> None:
    offer = handshake.parse(line())
    lines = [
        handshake.listening(offer, "tcp://127.0.0.1:5", "key", 7),
        handshake.ready(),
        handshake.fatal(handshake.late()),
    ]
    assert all(text.endswith(b"\n") and text.count(b"\n") == 1 for text in lines)
    assert [json.loads(text) for text in lines] == [
        {
            "event": "listening",
            "protocol": 1,
            "endpoint": "tcp://127.0.0.1:5",
            "server_public_key": "key",
            "pid": 7,
        },
        {"event": "ready"},
        {
            "event": "fatal",
            "code": "handshake.malformed",
            "message": str(handshake.late()),
        },
    ]
