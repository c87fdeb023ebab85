"""Which graph is run: the fastest that computes the right numbers on this very CPU.

Every graph is checked before it is trusted with an image: two runs of a golden input must be equal,
and agree with what the plain graph gave where the model was built. Graphs with our custom ops come
first, the plain one last; they share their weights. Arm's KleidiAI kernels in onnxruntime have
given wrong numbers on some CPUs (onnxruntime#26669, #31569), so what fails is tried without them,
and the plain graph at last on one thread.
"""

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np

from sidecar import custom_ops
from sidecar.custom_ops import CustomOpsUnavailable
from sidecar.errors import ModelInvalid, ModelUnfaithful, exhausted
from sidecar.job import OUTPUTS, FloatArray, PixelValues
from sidecar.manifest import REBUILD, TOKENS, CustomOpsGraph, Manifest
from sidecar.model_files import ModelFiles
from sidecar.onnx_files import external_files
from sidecar.session import Session

# Between two graphs of one model; a kernel that is wrong on a CPU is wrong by far more.
POOLED_COSINE = 0.995
HEATMAP_R = 0.99

RECORDED = ("pooled_embedding", "attention_scores")
MAX_RECORD_BYTES = 2**22
HEADER_BYTES = 4096  # of an array in a golden record, at most


@dataclass(frozen=True, slots=True)
class CustomOps:
    """Whether our custom ops are in use, and why so, as one sentence."""

    on: bool
    why: str


@dataclass(frozen=True, slots=True)
class Check:
    """What the golden input gave. `difference` says what is wrong with that; empty means nothing.

    `pooled_cosine` and `heatmap_r` compare with the record; None where the model has no record, or
    the runs did not come that far.
    """

    difference: str = ""
    pooled_cosine: float | None = None
    heatmap_r: float | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """The graph that runs, and how: its threads (0: one per physical core) and whether with
    KleidiAI.
    """

    graph: str
    threads: int
    kleidiai: bool
    check: Check
    custom_ops: CustomOps


@dataclass(frozen=True, slots=True)
class _Attempt:
    graph: str
    threads: int
    kleidiai: bool
    custom: CustomOpsGraph | None = None


def select(files: ModelFiles, threads: int, kernels: str = "auto") -> tuple[Session, Choice]:
    """Load the best graph of the model directory that works here; `kernels` is auto or off, and
    `threads` 0 means one per physical core. Raises ModelInvalid, ModelUnfaithful,
    ResourcesExhausted.
    """
    manifest = files.manifest
    recorded = read_record(files)
    why = (
        "they were switched off with --kernels off."
        if kernels == "off"
        else "the model directory has no graph for them."
    )
    difference = ""
    for attempt in _attempts(manifest, threads, kernels):
        try:
            session, variant = _load(files, attempt)
        except CustomOpsUnavailable as error:
            why = str(error)
            continue
        except ModelInvalid:
            if attempt.custom is None:
                raise
            why = "onnxruntime does not load the graph for them."
            continue
        check = check_session(session, manifest, recorded)
        if not check.difference:
            if attempt.custom is not None:
                names = ", ".join(attempt.custom.operators)
                why = (
                    f"this CPU has {variant} for {names}, and the golden input came out as "
                    "recorded."
                )
            used = CustomOps(attempt.custom is not None, why)
            choice = Choice(attempt.graph, attempt.threads, attempt.kleidiai, check, used)
            return session, choice
        del session  # its memory goes before the next graph takes as much
        difference = check.difference
        if attempt.custom is not None:
            why = f"the golden input did not come out as recorded: {difference}."
    raise ModelUnfaithful(
        "the model does not compute on this machine what it computed where it was built, with "
        f"onnxruntime's default kernels or its plainest ones: {difference}. Report the machine's "
        "CPU."
    )


def check_session(
    session: Session, manifest: Manifest, recorded: dict[str, FloatArray] | None
) -> Check:
    """Run the golden input twice, and compare. Raises ModelInvalid where the graph's outputs have
    other shapes than the manifest says.
    """
    pixel_values = golden_input(min(manifest.resolutions))
    try:
        first, second = session.run(pixel_values), session.run(pixel_values)
    except Exception as error:  # onnxruntime's exceptions share no base below Exception
        if shortage := exhausted(error):
            raise shortage from error
        return Check("onnxruntime does not get through the graph")
    for name, shape in output_shapes(manifest).items():
        if first[name].shape != shape:
            raise ModelInvalid(
                f"the graph gives {name} of shape {list(first[name].shape)} where the manifest "
                f"says {list(shape)}. {REBUILD}"
            )
    if not all(np.isfinite(array).all() for array in first.values()):
        return Check("its outputs are not finite numbers")
    if not all(np.array_equal(first[name], second[name]) for name in OUTPUTS):
        return Check("two runs of it gave different numbers")
    if recorded is None:
        return Check()
    cosine = _cosine(first["pooled_embedding"], recorded["pooled_embedding"])
    r = _cosine(_centred(first["attention_scores"]), _centred(recorded["attention_scores"]))
    difference = ""
    # Written so that NaN is a difference too.
    if not r >= HEATMAP_R:
        difference = f"the correlation of the heatmaps is {r:.4f}, not {HEATMAP_R} or more"
    if not cosine >= POOLED_COSINE:
        difference = (
            f"the cosine of the pooled embeddings is {cosine:.4f}, not {POOLED_COSINE} or more"
        )
    return Check(difference, cosine, r)


def read_record(files: ModelFiles) -> dict[str, FloatArray] | None:
    """What the plain graph gave for the golden input where the model was built: RECORDED, float32;
    None where the manifest names no record. Raises ModelInvalid.
    """
    manifest = files.manifest
    if not manifest.golden:
        return None
    try:
        with files.content(manifest.golden) as content:
            data = bytes(content[: MAX_RECORD_BYTES + 1])
        if len(data) > MAX_RECORD_BYTES:
            raise ValueError("a file beyond reason")  # noqa: TRY301
        with zipfile.ZipFile(BytesIO(data)) as archive:
            return {name: _read(archive, name, output_shapes(manifest)[name]) for name in RECORDED}
    except Exception as error:  # zipfile and numpy raise some ten types on other bytes
        raise exhausted(error) or ModelInvalid(
            f"{manifest.golden} is not a golden record of this model. {REBUILD}"
        ) from error


def record(session: Session, side: int, path: Path) -> None:
    """Write what `read_record` reads; the build calls this with the plain graph."""
    outputs = session.run(golden_input(side))
    np.savez(path, allow_pickle=False, **{name: outputs[name] for name in RECORDED})


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


def _attempts(manifest: Manifest, threads: int, kernels: str) -> Iterator[_Attempt]:
    custom = manifest.kernels if kernels == "auto" else ()
    for kleidiai in (True, False):
        for graph in custom:
            yield _Attempt(graph.graph, threads, kleidiai, graph)
        yield _Attempt(manifest.graph, threads, kleidiai)
    yield _Attempt(manifest.graph, 1, False)


def _load(files: ModelFiles, attempt: _Attempt) -> tuple[Session, str]:
    """The session, and the instruction set of its custom ops."""
    custom = attempt.custom
    variant = "" if custom is None else custom_ops.variant(custom.operators)
    with files.content(attempt.graph) as content:
        try:
            external = external_files(content)
        except ValueError as error:
            raise ModelInvalid(f"{attempt.graph} is not an ONNX graph. {REBUILD}") from error
    unlisted = sorted(external - {*files.manifest.files})
    if unlisted:
        raise ModelInvalid(
            f"{attempt.graph} reads weights from a file that the manifest does not list. {REBUILD}"
        )
    path = files.path(attempt.graph)
    return Session(path, attempt.threads, custom is not None, attempt.kleidiai), variant


def output_shapes(manifest: Manifest) -> dict[str, tuple[int, ...]]:
    """The shapes of the outputs for one image."""
    width = manifest.text_hidden
    return dict(zip(OUTPUTS, [(1, TOKENS, width), (1, TOKENS), (1, width)], strict=True))


def _read(archive: zipfile.ZipFile, name: str, shape: tuple[int, ...]) -> FloatArray:
    """One array of an .npz file; refuses one of another size before it is unpacked."""
    entry = archive.getinfo(f"{name}.npy")
    size = 4 * int(np.prod(shape))
    if not size < entry.file_size <= size + HEADER_BYTES:
        raise ValueError("an array of another size")
    stream = BytesIO(archive.read(entry))
    np.lib.format.read_magic(stream)
    header = np.lib.format.read_array_header_1_0(stream)  # numpy would allocate what it claims
    if header != (shape, False, np.dtype(np.float32)):
        raise ValueError("an array of another shape, order or type")
    return np.frombuffer(stream.read(size), np.float32).reshape(shape)


def _centred(values: FloatArray) -> FloatArray:
    return np.asarray(values - values.mean(), np.float32)


def _cosine(a: FloatArray, b: FloatArray) -> float:
    x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    size = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(x @ y) / size if size > 0 else float((x == y).all())
