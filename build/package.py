"""The last steps: the golden record, and the manifest that describes a model directory.

Files are described where they lie; the command line puts them into one directory.
"""

import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar

from build.artifacts import (
    CUSTOM_OP_GRAPHS,
    GOLDEN_RECORD,
    REPORT,
    SOURCE,
    TOOLS,
    Artifact,
    Inputs,
    Projection,
    data_of,
    plain_graph,
    read_flat_limits,
    read_geometry,
)
from sidecar import engine, manifest
from sidecar.session import Session


@dataclass(frozen=True)
class Golden:
    """Reads CHECKPOINT and `graphs`, writes GOLDEN: the plain graph's outputs for one input.

    The sidecar holds every graph that it loads against this record.
    """

    graphs: Artifact = Artifact.QUANTISED_GRAPHS
    dynamic: bool = True  # the graph takes other resolutions than the native one

    writes: ClassVar = Artifact.GOLDEN

    @property
    def reads(self) -> tuple[Artifact, ...]:
        return (Artifact.CHECKPOINT, self.graphs)

    def __call__(self, inputs: Inputs, out: Path) -> None:
        shape = read_geometry(inputs[Artifact.CHECKPOINT])
        side = min(shape.resolutions) if self.dynamic else shape.native
        engine.record(Session(plain_graph(inputs[self.graphs])), side, out / GOLDEN_RECORD)


@dataclass(frozen=True)
class Package:
    """Writes MANIFEST: the manifest of a model directory, and its report."""

    recipe: str
    projection: Projection
    graphs: Artifact = Artifact.QUANTISED_GRAPHS
    dynamic: bool = True

    writes: ClassVar = Artifact.MANIFEST

    @property
    def reads(self) -> tuple[Artifact, ...]:
        return (
            *(Artifact.CHECKPOINT, self.graphs, Artifact.GOLDEN, Artifact.FLAT_LIMITS),
            Artifact.REPORT,
        )

    def __call__(self, inputs: Inputs, out: Path) -> None:
        shape = read_geometry(inputs[Artifact.CHECKPOINT])
        origin = json.loads((inputs[Artifact.CHECKPOINT] / SOURCE).read_text("utf-8"))
        graphs = inputs[self.graphs]
        graph = plain_graph(graphs)
        optional = (data_of(graph).name, *CUSTOM_OP_GRAPHS)
        names = [graph.name, *(name for name in optional if (graphs / name).exists())]
        files = manifest.describe(graphs, names)
        files |= manifest.describe(inputs[Artifact.GOLDEN], [GOLDEN_RECORD])
        tools = {name: version(name) for name in TOOLS}
        described = manifest.Manifest(
            model_id=origin["model_id"],
            revision=origin["revision"],
            recipe=self.recipe,
            projection=self.projection,
            graph=graph.name,
            patch_size=shape.patch_size,
            vision_hidden=shape.hidden,
            text_hidden=shape.text_hidden,
            default_resolution=shape.native,
            resolutions=shape.resolutions if self.dynamic else (shape.native,),
            normalisation=shape.normalisation,
            files=files,
            kernels=tuple(
                manifest.CustomOpsGraph(name, operators)
                for name, operators in CUSTOM_OP_GRAPHS.items()
                if name in files
            ),
            golden=GOLDEN_RECORD,
            flat=read_flat_limits(inputs[Artifact.FLAT_LIMITS]),
            tools=tools,
        )
        manifest.write(described, out)
        report = json.loads((inputs[Artifact.REPORT] / REPORT).read_text("utf-8"))
        report = {"recipe": self.recipe, "projection": self.projection, **report, "tools": tools}
        (out / REPORT).write_text(json.dumps(report, indent=2) + "\n", "utf-8")
