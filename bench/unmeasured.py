"""A recipe for models with random weights: all that decides time and memory, nothing that measures.

At full size, measuring takes far longer than building, and says nothing about random weights.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from build.artifacts import (
    REPORT,
    Artifact,
    Inputs,
    Step,
    plain_graph,
    read_geometry,
    size,
    write_flat_limits,
)
from build.flat import MeasureFlat
from build.reference_outputs import Reference
from build.validate import Validate, cpu


@dataclass(frozen=True)
class NoLimits:
    """In place of MeasureFlat: a random model has no pages that look flat to it."""

    reads: ClassVar = (Artifact.CHECKPOINT,)
    writes: ClassVar = Artifact.FLAT_LIMITS

    def __call__(self, inputs: Inputs, out: Path) -> None:
        shape = read_geometry(inputs[Artifact.CHECKPOINT])
        write_flat_limits(dict.fromkeys(shape.resolutions, 0.0), out)


@dataclass(frozen=True)
class NoReport:
    """In place of Validate: what a random model's fidelity would be says nothing."""

    graphs: Artifact

    writes: ClassVar = Artifact.REPORT

    @property
    def reads(self) -> tuple[Artifact, ...]:
        return tuple(dict.fromkeys((Artifact.FLOAT_GRAPH, self.graphs)))

    def __call__(self, inputs: Inputs, out: Path) -> None:
        report = {
            "resolutions": {},
            "kernels": {"here": "not measured", "resolutions": {}},
            "bars": {},
            "images": [],
            "bytes": {
                "float": size(plain_graph(inputs[Artifact.FLOAT_GRAPH])),
                "model": size(plain_graph(inputs[self.graphs])),
            },
            "cpu": cpu(),
        }
        (out / REPORT).write_text(json.dumps(report, indent=2) + "\n", "utf-8")


def unmeasured(steps: Sequence[Step]) -> Iterator[Step]:
    """A recipe's steps without those that measure what the model is worth."""
    for step in steps:
        if isinstance(step, MeasureFlat):
            yield NoLimits()
        elif isinstance(step, Validate):
            yield NoReport(step.graphs)
        elif not isinstance(step, Reference):
            yield step
