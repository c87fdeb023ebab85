"""The last step: model files, report and manifest become a model directory."""

import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from build.checkpoint import SOURCE
from build.kernels import GOLDEN, KERNELS_GRAPHS, plain_graph
from build.pipeline import carry, times
from build.reference import Projection, geometry
from build.validate import REPORT
from sidecar import manifest

TOOLS = ("numpy", "onnx-ir", "onnxruntime", "onnxscript", "pillow", "torch", "transformers")


@dataclass(frozen=True)
class Package:
    """Writes the manifest beside the graph; adds to the report how long each step took."""

    recipe: str
    projection: Projection
    dynamic: bool

    def __call__(self, source: Path, out: Path) -> None:
        graph = plain_graph(source)
        optional = (f"{graph.name}.data", *KERNELS_GRAPHS, GOLDEN)
        names = [graph.name, *(name for name in optional if (source / name).exists())]
        carry(source, out, *names)
        shape = geometry(source)
        origin = json.loads((source / SOURCE).read_text("utf-8"))
        made = manifest.Manifest(
            model_id=origin["model_id"],
            revision=origin["revision"],
            recipe=self.recipe,
            projection=self.projection,
            graph=graph.name,
            patch_size=int(shape.vision.patch_size),
            vision_hidden=int(shape.vision.hidden_size),
            text_hidden=shape.text_hidden,
            default_resolution=shape.native,
            resolutions=shape.resolutions if self.dynamic else (shape.native,),
            normalisation=shape.normalisation,
            files=manifest.describe(out, names),
            kernels=tuple(
                manifest.CustomOpsGraph(name, operators)
                for name, operators in KERNELS_GRAPHS.items()
                if name in names
            ),
            golden=GOLDEN if GOLDEN in names else "",
            tools=tools(),
        )
        manifest.write(made, out)
        report = json.loads((source / REPORT).read_text("utf-8"))
        report = {"recipe": self.recipe, "projection": self.projection, **report}
        report |= {"tools": tools(), "seconds": times(source)}
        (out / REPORT).write_text(json.dumps(report, indent=2) + "\n", "utf-8")


def tools() -> dict[str, str]:
    """The versions that the model's bytes depend on."""
    return {name: version(name) for name in TOOLS}
