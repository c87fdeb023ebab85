"""A case's id and metadata: what is allowed in them, and how metadata are written. Values only."""

import json
import math
from collections.abc import Mapping
from typing import Any

from sidecar.errors import RequestMalformed

MAX_ID_BYTES = 256
MAX_METADATA_BYTES = 64 * 1024
MAX_DEPTH = 14  # of metadata

Metadata = Mapping[str, Any]


def check_id(id: object) -> str:
    """Raises RequestMalformed."""
    if not isinstance(id, str):
        raise RequestMalformed("the id of a case must be text.")
    try:
        size = len(id.encode())
    except UnicodeEncodeError as error:  # half of a surrogate pair
        raise RequestMalformed("the id is not valid Unicode.") from error
    if not 1 <= size <= MAX_ID_BYTES:
        raise RequestMalformed(
            f"expected an id of 1 to {MAX_ID_BYTES} bytes in UTF-8; {size} came."
        )
    return id


def metadata_text(metadata: object) -> str:
    """As JSON, compact. Raises RequestMalformed where it is no JSON object, or too large."""
    if not isinstance(metadata, Mapping) or not _is_json(metadata, MAX_DEPTH):
        raise RequestMalformed(
            "metadata must be a JSON object: text keys; values that are text, finite numbers, "
            f"true, false, null, lists or objects, at most {MAX_DEPTH} levels deep."
        )
    text = json_text(metadata)
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise RequestMalformed("the metadata hold text that is not valid Unicode.") from error
    if size > MAX_METADATA_BYTES:
        raise RequestMalformed(
            f"the metadata have {size} bytes as JSON; {MAX_METADATA_BYTES} are allowed."
        )
    return text


def json_text(value: Any) -> str:
    """Compact, and the same for the same value: a search for a key and its value relies on it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def holds(metadata: Metadata, where: Metadata) -> bool:
    """Whether the metadata have these values under these keys; true is not 1, but 1.0 is."""
    missing = object()
    for key, value in where.items():
        found = metadata.get(key, missing)
        if isinstance(found, bool) is not isinstance(value, bool) or found != value:
            return False
    return True


def _is_json(value: Any, depth: int) -> bool:
    if isinstance(value, Mapping):
        return depth > 0 and all(
            isinstance(key, str) and _is_json(item, depth - 1) for key, item in value.items()
        )
    if isinstance(value, list):
        return depth > 0 and all(_is_json(item, depth - 1) for item in value)
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, bool | int | str)
