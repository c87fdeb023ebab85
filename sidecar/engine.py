"""Which graph is run: one with our custom ops where it proves itself, else the plain one.

They share their weights. The model directory holds what the plain graph made of a golden input, and
another graph must make the same of it, on this very CPU, before it is trusted with an image.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sidecar import custom_ops
from sidecar.custom_ops import CustomOpsUnavailable
from sidecar.errors import ModelInvalid
from sidecar.job import FloatArray, PixelValues
from sidecar.manifest import Manifest
from sidecar.session import Session

# Between two graphs of one model; a custom op that is wrong on a CPU is wrong by far more.
POOLED_COSINE = 0.995
HEATMAP_R = 0.99


@dataclass(frozen=True, slots=True)
class CustomOps:
    """Whether our custom ops are in use, and why so, as one sentence."""

    on: bool
    why: str


def select(
    model: Path, manifest: Manifest, threads: int, kernels: str = "auto"
) -> tuple[Session, CustomOps]:
    """Load the best graph of the model directory that works here; `kernels` is auto or off, and
    `threads` 0 means one per physical core. Raises ModelInvalid.
    """
    if kernels == "off":
        why = "they were switched off with --kernels off."
    else:
        why = "the model directory has no graph for them."
        for candidate in manifest.kernels:
            try:
                variant = custom_ops.variant(candidate.operators)
                session = Session(model / candidate.graph, threads, custom_ops=True)
            except CustomOpsUnavailable as error:
                why = str(error)
                continue
            except ModelInvalid:
                why = "onnxruntime does not load the graph for them."
                continue
            difference = check(session, manifest, model)
            if not difference:
                return session, CustomOps(
                    True,
                    f"this CPU has {variant} for {' and '.join(candidate.operators)}, and the "
                    "golden input came out as recorded.",
                )
            del session  # its memory goes before the next graph takes as much
            why = f"the golden input did not come out as recorded: {difference}."
    return Session(model / manifest.graph, threads), CustomOps(False, why)


def check(session: Session, manifest: Manifest, model: Path) -> str:
    """Run the golden input. Return why its outputs differ from the recorded ones, or "" if they do
    not.
    """
    with np.load(model / manifest.golden, allow_pickle=False) as recorded:
        pooled, scores = recorded["pooled_embedding"], recorded["attention_scores"]
    try:
        outputs = session.run(golden_input(min(manifest.resolutions)))
    except Exception:  # onnxruntime's exceptions share no base below Exception
        return "onnxruntime does not get through the graph"
    cosine = _cosine(outputs["pooled_embedding"], pooled)
    r = _cosine(_centred(outputs["attention_scores"]), _centred(scores))
    # Written so that NaN is a difference too.
    if not cosine >= POOLED_COSINE:
        return f"the cosine of the pooled embeddings is {cosine:.4f}, not {POOLED_COSINE} or more"
    if not r >= HEATMAP_R:
        return f"the correlation of the heatmaps is {r:.4f}, not {HEATMAP_R} or more"
    return ""


def record(session: Session, side: int, path: Path) -> None:
    """Write what `check` compares with; the build calls this with the plain graph."""
    outputs = session.run(golden_input(side))
    names = ("pooled_embedding", "attention_scores")
    np.savez(path, allow_pickle=False, **{name: outputs[name] for name in names})


def golden_input(side: int) -> PixelValues:
    """A picture of waves, a bright square and a dark one: float32 [1, 3, side, side], -1 to 1."""
    down, across = np.mgrid[0:side, 0:side].astype(np.float32) / side
    waves = [
        np.sin(2 * np.pi * (3 + 4 * c) * (across + (c - 1) * down * down)) * (1 - 0.5 * down)
        for c in range(3)
    ]
    picture = np.stack(waves)
    picture[:, side // 8 : side // 3, side // 8 : side // 3] = 0.9
    picture[:, side // 2 : side * 7 // 8, side * 5 // 8 : side * 3 // 4] = -0.9
    return picture[None].astype(np.float32)


def _centred(values: FloatArray) -> FloatArray:
    return np.asarray(values - values.mean(), np.float32)


def _cosine(a: FloatArray, b: FloatArray) -> float:
    if a.shape != b.shape:
        return float("nan")
    x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    size = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(x @ y) / size if size > 0 else float((x == y).all())
