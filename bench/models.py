"""Every model file of the benchmark, made by the real pipeline and by the peers' own tools.

    python -m bench.models demo|LAYERS MODEL…

A process of its own, since building takes more memory than measuring; what is made is kept.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from bench import checkpoint, machine
from bench.unmeasured import unmeasured
from build import images, pipeline
from build.__main__ import place
from build.artifacts import FLOAT, WEIGHTS, Artifact, Projection, Step, read_geometry, size
from build.checkpoint import locate
from build.export import Export
from build.recipes import RECIPES, Choice
from sidecar import model_files

ROOT = Path(__file__).parents[1]
WORK = ROOT / ".work" / "bench"
CACHE = ROOT / ".cache"
DEMO = "demo"

PROJECTION: Projection = "projector"  # one for all rows: else they would compute different things
NNCF_BYTES_A_LAYER = 500_000_000  # of memory: 13.4 GB were seen at 27 layers

# Neither may tell its maker that we ran it.
os.environ["NNCF_CI"] = "1"
os.environ["CI"] = "true"

Found = dict[str, Any]


def recipe(name: str, source: Step, random: bool) -> Found:
    """The model directory that `python -m build` makes; of a random model, without measurements."""
    steps = RECIPES[name](Choice(projection=PROJECTION, no_bars=True))
    chain = (source, *(unmeasured(steps) if random else steps))
    model = WORK / "models" / f"{name}-{pipeline.keys(chain)[-1]}"
    if not model.exists():
        model.parent.mkdir(parents=True, exist_ok=True)
        place(pipeline.run(chain, WORK / "build", _tell), model, {})
    described = model_files.load(model)
    return {
        "path": str(model),
        "graph": str(model / described.graph),
        "bytes": sum(file.bytes for file in described.files.values()),
    }


def plain(source: Step) -> Found:
    """The float graph as PyTorch exports it, without custom ops."""
    made = pipeline.run((source, Export(PROJECTION, fused=False)), WORK / "build", _tell)
    graph = made[Artifact.FLOAT_GRAPH] / FLOAT
    return {"path": str(graph.parent), "graph": str(graph), "bytes": size(graph)}


def weights(source: Step) -> Found:
    """What PyTorch loads."""
    made = pipeline.run((source,), WORK / "build", _tell)[Artifact.CHECKPOINT]
    return {"path": str(made), "bytes": (made / WEIGHTS).stat().st_size}


def openvino(source: Step, compress: Callable[[Any, Path], Any], name: str) -> Found:
    """OpenVINO's own format, from the plain graph at its native size, where OpenVINO is fastest."""
    import openvino as ov

    start = Path(plain(source)["graph"])
    checkpoint = Path(weights(source)["path"])
    target = start.parent / f"{name}.xml"
    if not target.exists():
        model = ov.Core().read_model(start)
        side = read_geometry(checkpoint).native
        model.reshape([1, 3, side, side])
        partial = start.parent / f"{name}.partial.xml"
        ov.save_model(compress(model, checkpoint), partial)
        partial.with_suffix(".bin").replace(target.with_suffix(".bin"))
        partial.replace(target)
    size = target.stat().st_size + target.with_suffix(".bin").stat().st_size
    return {"path": str(target.parent), "graph": str(target), "bytes": size}


def nncf_int8(model: Any, checkpoint: Path) -> Any:
    """Weights and activations to 8 bits, on the images that our own recipe calibrates with."""
    import nncf

    shape = read_geometry(checkpoint)

    def pixels() -> Iterator[Any]:
        for name in images.CALIBRATION:
            rgb = images.bundled(name)
            yield images.pixel_values(rgb, shape.native, shape.native, shape.normalisation)

    need, have = shape.layers * NNCF_BYTES_A_LAYER, machine.available_bytes()
    if shape.native == 896 and need > have:
        raise MemoryError(
            f"NNCF needs about {need / 1e9:.0f} GB of memory here, and {have / 1e9:.0f} are free"
        )
    data = nncf.Dataset(list(pixels()))
    return nncf.quantize(
        model,
        data,
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(images.CALIBRATION),
    )


def nncf_weights(model: Any, _: Path) -> Any:
    """Weights alone to 8 bits."""
    import nncf

    return nncf.compress_weights(model)


MODELS: dict[str, Callable[[Step, bool], Found]] = {
    "checkpoint": lambda source, _: weights(source),
    "plain": lambda source, _: plain(source),
    "seed": lambda source, random: recipe("seed", source, random),
    "float": lambda source, random: recipe("float", source, random),
    "default": lambda source, random: recipe("default", source, random),
    "openvino-float": lambda source, _: openvino(source, lambda model, _: model, "float"),
    "weight-only": lambda source, _: openvino(source, nncf_weights, "weight-only"),
    "nncf": lambda source, _: openvino(source, nncf_int8, "nncf"),
}


def make(what: str, names: Sequence[str]) -> dict[str, Found]:
    """The models of these names, of the demo or of a random checkpoint with so many layers.

    One that cannot be made has only a `missing`, which says why.
    """
    if what == DEMO:
        from build import demo

        directory = demo.checkpoint(CACHE, pipeline.code(demo.__name__), _tell)
    else:
        directory = checkpoint.make(WORK / f"random-{what}", int(what))
    source = locate(str(directory))
    found: dict[str, Found] = {}
    for name in names:
        try:
            found[name] = MODELS[name](source, what != DEMO)
        except (ImportError, MemoryError) as error:
            found[name] = {"missing": str(error)}
    return found


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> int:
    """The models' places as one JSON line on stdout."""
    what, *names = sys.argv[1:]
    with redirect_stdout(sys.stderr):  # NNCF draws its progress on stdout
        found = make(what, names)
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
