"""Which graph is run: one with our own operators where they prove themselves, else the plain.

They share their weights. The model directory holds what the plain one made of a golden input, and
another must make the same of it, on this very CPU, before it is trusted with an image.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sidecar.errors import ModelInvalid
from sidecar.manifest import Manifest
from sidecar.session import Array, KernelsMissing, Session, kernels_variant

# Between the two graphs; an operator that is wrong on a CPU is wrong by far more.
POOLED_COSINE = 0.995
HEATMAP_R = 0.99


@dataclass(frozen=True, slots=True)
class Kernels:
    """Whether our own operators are in use, and why so, as one sentence."""

    on: bool
    why: str


def load(
    model: Path, described: Manifest, threads: int, kernels: str = "auto"
) -> tuple[Session, Kernels]:
    """Load one of the graphs; `kernels` is auto or off. Raises ModelInvalid."""
    if kernels == "off":
        why = "they were switched off with --kernels off."
    else:
        why = "the model directory has no graph for them."
        for candidate in described.kernels:
            try:
                variant = kernels_variant(candidate.operators)
                session = Session(model / candidate.graph, threads, kernels=True)
            except KernelsMissing as error:
                why = str(error)
                continue
            except ModelInvalid:
                why = "onnxruntime does not load the graph for them."
                continue
            misses = check(session, described, model)
            if not misses:
                return session, Kernels(
                    True,
                    f"this CPU has {variant} for {' and '.join(candidate.operators)}, and the "
                    "golden input came out as recorded.",
                )
            del session  # its memory goes before the next graph takes as much
            why = f"the golden input did not come out as recorded: {misses}."
    return Session(model / described.graph, threads), Kernels(False, why)


def check(session: Session, described: Manifest, model: Path) -> str:
    """Run the golden input; in which figure it falls short of the record, empty if in none."""
    with np.load(model / described.golden, allow_pickle=False) as recorded:
        pooled, scores = recorded["pooled_embedding"], recorded["attention_scores"]
    try:
        found = session.run(golden_input(min(described.resolutions)))
    except Exception:  # onnxruntime's exceptions share no base below Exception
        return "onnxruntime does not get through the graph"
    cosine = _cosine(found["pooled_embedding"], pooled)
    r = _cosine(_centred(found["attention_scores"]), _centred(scores))
    # Written so that NaN falls short too.
    if not cosine >= POOLED_COSINE:
        return f"the cosine of the pooled embeddings is {cosine:.4f}, not {POOLED_COSINE} or more"
    if not r >= HEATMAP_R:
        return f"the correlation of the heatmaps is {r:.4f}, not {HEATMAP_R} or more"
    return ""


def record(session: Session, side: int, path: Path) -> None:
    """Write what `check` compares with; the build calls this with the plain graph."""
    found = session.run(golden_input(side))
    names = ("pooled_embedding", "attention_scores")
    np.savez(path, allow_pickle=False, **{name: found[name] for name in names})


def golden_input(side: int) -> Array:
    """A picture of waves, a bright square and a dark one: [1, 3, side, side], from -1 to 1."""
    down, across = np.mgrid[0:side, 0:side].astype(np.float32) / side
    waves = [
        np.sin(2 * np.pi * (3 + 4 * c) * (across + (c - 1) * down * down)) * (1 - 0.5 * down)
        for c in range(3)
    ]
    picture = np.stack(waves)
    picture[:, side // 8 : side // 3, side // 8 : side // 3] = 0.9
    picture[:, side // 2 : side * 7 // 8, side * 5 // 8 : side * 3 // 4] = -0.9
    return picture[None].astype(np.float32)


def _centred(values: Array) -> Array:
    return np.asarray(values - values.mean(), np.float32)


def _cosine(a: Array, b: Array) -> float:
    if a.shape != b.shape:
        return float("nan")
    x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    size = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(x @ y) / size if size > 0 else float((x == y).all())
