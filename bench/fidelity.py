"""What each row's outputs are good for, on the demo checkpoint's real weights and real images.

    python -m bench.fidelity THREADS rows ROW…     against the float reference, at the native size
    python -m bench.fidelity THREADS resolutions   smaller images against native ones, as we ship it

One JSON line on stdout. A process of its own, since PyTorch is large; what was found is kept until
a model, an engine or its options change.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench import machine, models, rounds
from bench.figures import missed
from bench.rows import Row, choose
from build import images, metrics, pipeline
from build.artifacts import read_geometry
from build.recipes import RECIPES, Choice
from build.validate import Validate
from sidecar.job import OUTPUTS

Outputs = dict[str, dict[str, NDArray[np.float32]]]  # by image, by output

REFERENCE = Row("reference", "float, PyTorch", "torch", "checkpoint")
SCRATCH = models.WORK / "fidelity"


class EngineFailed(Exception):
    """An engine did not get through the images; the message is its own."""


def of_rows(rows: Sequence[Row], threads: int) -> dict[str, Any]:
    """By row: the figures of the build's report, and which of our recipe's bars are missed."""
    made = models.make(models.DEMO, sorted({row.model for row in (*rows, REFERENCE)}))
    checkpoint = Path(made[REFERENCE.model]["path"])
    side = read_geometry(checkpoint).native
    bars = _bars()
    expected: Outputs | None = None
    found: dict[str, Any] = {}
    for row in rows:
        model = made[row.model]
        if "missing" in model:
            found[row.name] = model
            continue
        kept = SCRATCH / f"{row.name}-{_key(row, model, bars)}.json"
        if not kept.exists():
            try:
                expected = expected or _encode(REFERENCE, made, checkpoint, side, threads)
                actual = _encode(row, made, checkpoint, side, threads)
            except EngineFailed as error:
                found[row.name] = {"missing": str(error)}
                continue
            _keep(kept, _compare(expected, actual, bars))
        found[row.name] = json.loads(kept.read_text("utf-8"))
    return found


def of_resolutions(threads: int) -> dict[str, Any]:
    """By resolution: how far what it gives agrees with what the native resolution gives."""
    (row,) = choose(["kernels"])
    made = models.make(models.DEMO, [row.model, REFERENCE.model])
    checkpoint = Path(made[REFERENCE.model]["path"])
    shape = read_geometry(checkpoint)
    kept = SCRATCH / f"resolutions-{_key(row, made[row.model], {})}.json"
    if not kept.exists():
        native = _encode(row, made, checkpoint, shape.native, threads)
        found = {
            str(side): _compare(native, _encode(row, made, checkpoint, side, threads), {})
            for side in shape.resolutions
        }
        _keep(kept, found)
    result: dict[str, Any] = json.loads(kept.read_text("utf-8"))
    return result


def _encode(
    row: Row, made: Mapping[str, Any], checkpoint: Path, side: int, threads: int
) -> Outputs:
    print(f"fidelity: {row.name} at {side} …", file=sys.stderr, flush=True)
    names = images.VALIDATION
    how = read_geometry(checkpoint).normalisation
    place = SCRATCH / "arrays"
    place.mkdir(parents=True, exist_ok=True)
    files = [place / f"{index}.pixels" for index in range(len(names))]
    for name, file in zip(names, files, strict=True):
        images.pixel_values(images.bundled(name), side, side, how).tofile(file)
    report = rounds.run(
        row, made[row.model], files, side, threads=threads, warmups=0, runs=1, outputs=place
    )
    if "failed" in report:
        raise EngineFailed(report["failed"])
    return {
        name: {output: _read(place / f"{index}.{output}", output) for output in OUTPUTS}
        for index, name in enumerate(names)
    }


def _read(path: Path, output: str) -> NDArray[np.float32]:
    values = np.fromfile(path, np.float32)
    return values.reshape(1, 256, -1) if output == OUTPUTS[0] else values.reshape(1, -1)


def _compare(
    expected: Outputs, actual: Outputs, bars: Mapping[str, float | None]
) -> dict[str, Any]:
    figures = {name: figure.value for name, figure in metrics.compare(expected, actual)}
    return {"figures": figures, "missed": missed(figures, bars)}


def _bars() -> dict[str, float | None]:
    steps = RECIPES["default"](Choice())
    return asdict(next(step.bars for step in steps if isinstance(step, Validate)))


def _key(row: Row, model: Mapping[str, Any], bars: Mapping[str, float | None]) -> str:
    """A model's path holds a hash of all that it was made from; the rest is code and versions."""
    code = [pipeline.code(module) for module in ("bench.fidelity", "bench.guest")]
    depends = (row, model["path"], sorted(bars.items()), machine.versions(), *code)
    return sha256(repr(depends).encode()).hexdigest()[:16]


def _keep(path: Path, found: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found), "utf-8")


def main() -> int:
    threads, mode, *names = sys.argv[1:]
    with redirect_stdout(sys.stderr):
        if mode == "rows":
            found = of_rows(choose(names), int(threads))
        else:
            found = of_resolutions(int(threads))
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
