"""What people read when something fails, kept word for word in tests/golden/messages.

A sentence that changes shows up in review. UPDATE_GOLDEN=1 writes the files anew; look at the
difference before you commit it.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path

MESSAGES = Path(__file__).parents[1] / "golden" / "messages"


def check(name: str, messages: Mapping[str, str]) -> None:
    """Compare each sentence with the one that was reviewed."""
    path = MESSAGES / f"{name}.json"
    if os.environ.get("UPDATE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(messages, indent=1, ensure_ascii=False) + "\n", "utf-8")
    reviewed: dict[str, str] = json.loads(path.read_text("utf-8"))
    assert dict(messages) == reviewed
