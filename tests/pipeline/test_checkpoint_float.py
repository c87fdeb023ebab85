import copy
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from build.artifacts import FLOAT, Artifact
from build.checkpoint import locate
from build.export import Export
from build.pipeline import Inputs, run
from build.reference import load
from tests.pipeline import odd


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return (
        torch.rand(2, 3, odd.IMAGE, odd.IMAGE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    )


def truth(dtype: torch.dtype, pixels: torch.Tensor) -> torch.Tensor:
    """What Transformers computes in FP32 with the weights as they are stored."""
    model = copy.deepcopy(odd.model()).to(dtype).float()
    with torch.no_grad():
        features: torch.Tensor = model.get_image_features(pixels).pooler_output
    return features


@pytest.mark.parametrize("dtype", odd.DTYPES)
@pytest.mark.parametrize("layout", odd.LAYOUTS)
def test_every_layout_and_dtype_computes_what_transformers_does(
    layout: str, dtype: str, pixels: torch.Tensor, tmp_path: Path
) -> None:
    locate(str(odd.write(tmp_path / "model", layout, dtype, shards=2)))(Inputs(), tmp_path)
    with torch.no_grad():
        found = load(tmp_path, "projector")(pixels)[0]
    error = (found - truth(odd.DTYPES[dtype], pixels)).abs().max()
    # The dtype matters: another rounding of the weights is another model.
    other = torch.float16 if dtype == "BF16" else torch.bfloat16
    assert error < 1e-4
    assert (found - truth(other, pixels)).abs().max() > 10 * error


def test_the_float_graph_of_a_checkpoint_of_odd_sizes_equals_transformers(
    pixels: torch.Tensor, tmp_path: Path
) -> None:
    step = locate(str(odd.write(tmp_path / "model")))
    made = run([step, Export()], tmp_path / "work", lambda _: None)[Artifact.FLOAT_GRAPH]
    session = onnxruntime.InferenceSession(made / FLOAT, providers=["CPUExecutionProvider"])
    found = session.run(["projected_embeddings"], {"pixel_values": pixels.numpy()})[0]
    assert found.shape == (2, 256, odd.TEXT_HIDDEN)
    np.testing.assert_allclose(found, truth(torch.bfloat16, pixels), rtol=1e-3, atol=1e-4)
