"""The last steps: the golden record, the manifest that describes a model directory, its zip file.

Files are described where they lie; the command line puts them into one directory.
"""

import json
import zipfile
import zlib
from dataclasses import dataclass
from hashlib import file_digest
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from build.artifacts import (
    CUSTOM_OP_GRAPHS,
    GOLDEN_RECORD,
    REPORT,
    SOURCE,
    TOOLS,
    ZIP,
    ZIP_FACTS,
    Artifact,
    Inputs,
    Plan,
    Projection,
    data_of,
    plain_graph,
    read_flat_limits,
    read_geometry,
    read_plan,
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
    """Writes MANIFEST: the manifest of a model directory, and its report.

    The report shows what TEST_REPORT holds under `test`, and COMPARISON's figures by the name of
    the recipe `compared`.
    """

    recipe: str
    projection: Projection
    graphs: Artifact = Artifact.QUANTISED_GRAPHS
    dynamic: bool = True
    test: bool = False
    compared: str | None = None

    writes: ClassVar = Artifact.MANIFEST

    @property
    def reads(self) -> tuple[Artifact, ...]:
        return (
            *(Artifact.CHECKPOINT, self.graphs, Artifact.GOLDEN, Artifact.FLAT_LIMITS),
            *(Artifact.REPORT, *([Artifact.TEST_REPORT] if self.test else ())),
            *([Artifact.COMPARISON] if self.compared else ()),
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
        report = _report(inputs, Artifact.REPORT)
        report = {"recipe": self.recipe, "projection": self.projection, **report, "tools": tools}
        if self.test:
            report["test"] = _report(inputs, Artifact.TEST_REPORT, FIGURES)
        if self.compared:
            found = _report(inputs, Artifact.COMPARISON, (*FIGURES, "bytes"))
            report["compared"] = {"recipe": self.compared, **found}
        (out / REPORT).write_text(json.dumps(report, indent=2) + "\n", "utf-8")


FIGURES = ("resolutions", "kernels", "changed_neighbours", "images")  # of a report


def _report(inputs: Inputs, artifact: Artifact, keys: tuple[str, ...] = ()) -> dict[str, Any]:
    """A report, or its entries of these names."""
    report: dict[str, Any] = json.loads((inputs[artifact] / REPORT).read_text("utf-8"))
    return {key: report[key] for key in keys} if keys else report


@dataclass(frozen=True)
class Zip:
    """Writes ARCHIVE: the manifest and the files that it names, as a zip file for the download.

    The same files give the same bytes. The report stays out: it holds times.
    """

    reads: ClassVar = (
        Artifact.PLAN,
        Artifact.QUANTISED_GRAPHS,
        Artifact.GOLDEN,
        Artifact.MANIFEST,
    )
    writes: ClassVar = Artifact.ARCHIVE

    def __call__(self, inputs: Inputs, out: Path) -> None:
        names = [manifest.NAME, *sorted(manifest.read(inputs[Artifact.MANIFEST]).files)]
        places = [inputs[artifact] for artifact in self.reads]
        with zipfile.ZipFile(out / ZIP, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in inputs.progress(names, "files zipped"):
                add(archive, next(path / name for path in places if (path / name).exists()))
        with (out / ZIP).open("rb") as file:
            digest = file_digest(file, "sha256").hexdigest()
        facts = {
            "bytes": (out / ZIP).stat().st_size,
            "sha256": digest,
            "entropy": entropy(read_plan(inputs[Artifact.PLAN])),
        }
        (out / ZIP_FACTS).write_text(json.dumps(facts) + "\n", "utf-8")


def add(archive: zipfile.ZipFile, file: Path) -> None:
    """Add a file to a zip file, without its time, owner and permissions."""
    entry = zipfile.ZipInfo(file.name)  # of 1980
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = 0o644 << 16
    entry.create_system = 3  # Unix, wherever it is written
    entry.file_size = file.stat().st_size
    with file.open("rb") as source, archive.open(entry, "w") as target:
        # Weights have no repetitions. Deflate finds some all the same, at a tenth more bytes.
        strategy = zlib.Z_HUFFMAN_ONLY if file.suffix == ".data" else zlib.Z_DEFAULT_STRATEGY
        compressor = zlib.compressobj(9, zlib.DEFLATED, -15, 9, strategy)
        stream: Any = target
        stream._compressor = compressor  # zipfile has no option for it; a test holds the size
        while chunk := source.read(1 << 20):
            target.write(chunk)


def entropy(plan: Plan) -> float:
    """Of the linear layers' integers: bits a weight, with a table for each layer."""
    bits, count = 0.0, 0
    for linear in plan.linears:
        histogram = np.bincount(linear.weight.ravel().view(np.uint8), minlength=256)
        share = histogram[histogram > 0] / linear.weight.size
        bits -= float((share * np.log2(share)).sum()) * linear.weight.size
        count += linear.weight.size
    return round(bits / count, 4)
