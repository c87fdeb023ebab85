"""The step that runs the float model once on each image; recipes are compared with its outputs."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from build import images
from build.artifacts import Artifact, Inputs, Projection, read_geometry, write_outputs
from build.reference import load
from build.testset import Unseen
from sidecar.job import OUTPUTS


@dataclass(frozen=True)
class Reference:
    """Reads CHECKPOINT, writes REFERENCE: the model's outputs in FP32, each image once per size.

    Nothing in it depends on how a recipe quantises: recipes of one checkpoint share it. With
    `test`, its images in place of `images`, and TEST_REFERENCE.
    """

    projection: Projection = "projector"
    dynamic: bool = True  # at half the native size too
    images: tuple[str, ...] = images.VALIDATION
    test: Unseen | None = None

    reads: ClassVar = (Artifact.CHECKPOINT,)

    @property
    def writes(self) -> Artifact:
        return Artifact.TEST_REFERENCE if self.test else Artifact.REFERENCE

    def __call__(self, inputs: Inputs, out: Path) -> None:
        shape = read_geometry(inputs[Artifact.CHECKPOINT])
        encoder = load(inputs[Artifact.CHECKPOINT], self.projection)
        sides = [shape.native]
        if self.dynamic and shape.native % (2 * shape.step) == 0:
            sides.insert(0, shape.native // 2)
        pictures = (
            self.test.load() if self.test else {name: images.bundled(name) for name in self.images}
        )
        for side in sides:
            outputs = {}
            for name, rgb in inputs.progress(pictures.items(), f"images at {side} pixels, float"):
                pixels = images.pixel_values(rgb, side, side, shape.normalisation)
                with torch.inference_mode():
                    tensors = encoder(torch.from_numpy(pixels))
                outputs[name] = {
                    output: tensor.numpy() for output, tensor in zip(OUTPUTS, tensors, strict=True)
                }
            write_outputs(outputs, out, side)
