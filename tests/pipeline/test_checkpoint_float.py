import copy
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from build.checkpoint import locate
from build.export import GRAPH, Export
from build.pipeline import run
from tests.pipeline import odd


@pytest.mark.parametrize(
    ("dtype", "layout", "shards"),
    [("F16", "model", 3), ("BF16", "2025, vision_model", 1), ("F32", "plain", 2)],
)
def test_the_float_graph_of_a_checkpoint_of_odd_sizes_equals_transformers(
    dtype: str, layout: str, shards: int, tmp_path: Path
) -> None:
    step, directory = locate(str(odd.write(tmp_path / "model", layout, dtype, shards)))
    made = run([step, Export()], directory, tmp_path / "work", "", lambda _: None)
    session = onnxruntime.InferenceSession(made / GRAPH, providers=["CPUExecutionProvider"])
    torch.manual_seed(0)
    pixels = torch.rand(2, 3, odd.IMAGE, odd.IMAGE) * 2 - 1
    found = session.run(["projected_embeddings"], {"pixel_values": pixels.numpy()})[0]
    # The weights as they are stored, computed with in FP32.
    truth = copy.deepcopy(odd.model()).to(odd.DTYPES[dtype]).float()
    with torch.no_grad():
        expected = truth.get_image_features(pixels).pooler_output
    assert found.shape == (2, 256, odd.TEXT_HIDDEN)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    # The dtype matters: another rounding of the weights is another model.
    other = copy.deepcopy(odd.model()).to(torch.bfloat16 if dtype != "BF16" else torch.float16)
    with torch.no_grad():
        wrong = other.float().get_image_features(pixels).pooler_output
    assert np.abs(found - wrong.numpy()).max() > 10 * np.abs(found - expected.numpy()).max()
