"""Which files an ONNX graph reads its weights from: a walk over protobuf that decodes nothing else.

The table is that of onnx.proto (IR version 10): for each message, the fields that lead to a tensor.
A runtime needs no more of the format than that, and no ONNX package.
"""

from collections.abc import Iterator

MAX_DEPTH = 64  # messages within messages

# Message: {field number: message}. What is not named here holds no tensor.
_FIELDS = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
_KEY, _VALUE = 1, 2  # of a StringStringEntryProto


def external_files(model: memoryview) -> set[str]:
    """The `location` of every tensor of a serialised ModelProto whose data is in another file.

    Raises ValueError where the bytes are no such message.
    """
    return set(_locations(model, "model", MAX_DEPTH))


def _locations(message: memoryview, kind: str, depth: int) -> Iterator[str]:
    if depth == 0:
        raise ValueError("messages are nested too deeply")
    for number, value in _fields(message):
        inner = _FIELDS[kind].get(number)
        if inner == "entry":
            entry = dict(_fields(value))
            if bytes(entry.get(_KEY, b"")) == b"location":
                yield bytes(entry.get(_VALUE, b"")).decode()
        elif inner is not None:
            yield from _locations(value, inner, depth - 1)


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Number and content of each length-delimited field; others are skipped."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        match key & 7:
            case 0:  # a varint
                _, at = _varint(message, at)
            case 1:  # 64 bits
                at += 8
            case 5:  # 32 bits
                at += 4
            case 2:  # bytes, text or a message
                size, at = _varint(message, at)
                if at + size > len(message):
                    raise ValueError("a field is longer than its message")
                yield key >> 3, message[at : at + size]
                at += size
            case _:
                raise ValueError("a wire type that onnx.proto does not use")


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(message) or shift > 63:
            raise ValueError("a number is cut short or too long")
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
