"""Which tensors make up the vision tower and the projector: their names in every layout.

Transformers has written them with and without a leading `model.`, and with and without a
`vision_model.` inside the tower. Ours is the shortest of these.
"""

import re

LAYOUTS = re.compile(
    r"(?:model\.)?(?:(?P<tower>vision_tower\.)(?:vision_model\.)?|(?P<projector>multi_modal_projector\.))(?P<rest>.+)"
)


def canonical(key: str) -> str | None:
    """The name under which we keep a checkpoint's tensor, or None where we do not need it."""
    match = LAYOUTS.fullmatch(key)
    if match is None or match["rest"].startswith("head."):  # SigLIP's own pooling, unused by Gemma
        return None
    return (match["tower"] or match["projector"]) + match["rest"]
