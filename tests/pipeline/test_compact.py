"""Rate-distortion GPTQ with refitting, on a tower of two layers."""

import pytest
import torch
from torch import nn

from build.artifacts import POSITIONS, PROJECTION, Plan
from build.calibrate import PACKED, Calibrate, Site, fold, pack
from build.compact import Compact, refit, squared_gradients
from build.gptq import hessian
from build.package import entropy
from build.reference import VisionEncoderWrapper
from tests import tiny


def linear(inputs: int, outputs: int) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(inputs, outputs).requires_grad_(False)


def tokens(seed: int, channels: int = 16) -> torch.Tensor:
    return torch.randn(1, 512, channels, generator=torch.Generator().manual_seed(seed))


def test_a_refit_undoes_what_a_linear_map_did_to_the_input() -> None:
    module, exact = linear(16, 8), tokens(0)
    drift = torch.eye(16) + 0.1 * torch.randn(16, 16, generator=torch.Generator().manual_seed(1))
    site = Site((module,), exact, pack([exact @ drift]), None)
    before = (exact - exact @ drift) @ site.weight
    after = exact @ site.weight - (exact @ drift) @ refit(
        site, hessian(site.actual.tokens), ridge=1e-6
    )
    assert after.square().mean() < 1e-3 * before.square().mean()


def test_a_refit_fills_the_gap_of_the_residual_stream() -> None:
    module, x = linear(16, 8), tokens(0)
    gap = x @ torch.randn(16, 8, generator=torch.Generator().manual_seed(1))
    site = Site((module,), x, pack([x]), gap)
    left = gap - x @ (refit(site, hessian(site.actual.tokens), ridge=1e-6) - site.weight)
    assert left.square().mean() < 1e-3 * gap.square().mean()


def test_without_drift_a_refit_changes_nothing() -> None:
    site = Site((linear(16, 8),), tokens(0), pack([tokens(0)]), None)
    assert refit(site, hessian(site.actual.tokens), ridge=0.3).equal(site.weight)


@pytest.fixture(scope="module")
def encoder() -> VisionEncoderWrapper:
    model = tiny.model().model
    tower = model.vision_tower
    tower.config._attn_implementation = PACKED
    projection = model.multi_modal_projector.mm_input_projection_weight.data
    return VisionEncoderWrapper(tower, None, projection).eval().requires_grad_(False)


def pixels(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 224, 224, generator=torch.Generator().manual_seed(2))


def test_the_importance_of_an_output_is_the_squared_gradient(
    encoder: VisionEncoderWrapper,
) -> None:
    importance = squared_gradients(encoder, pixels(2), seed=1)
    linears = [name for name, module in encoder.named_modules() if isinstance(module, nn.Linear)]
    assert importance.keys() == {*linears, POSITIONS, PROJECTION}
    for name in linears:
        assert importance[name].shape == encoder.get_parameter(f"{name}.bias").shape
        assert (importance[name] >= 0).all()
    assert importance[PROJECTION].shape == encoder.projection.shape[1:]
    assert importance[POSITIONS].shape == encoder.projection.shape[:1]
    # Softmax does not see what all keys have in common: a key's bias has no gradient, but keys do.
    assert importance[linears[0]].sum() > 0
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_a_larger_step_saves_bits_and_costs_fidelity(encoder: VisionEncoderWrapper) -> None:
    x = pack([tokens(0, 64)])
    importance = squared_gradients(encoder, pixels(2), seed=1)
    layer = encoder.tower.encoder.layers[0]
    name = "tower.encoder.layers.0"
    bits, lost = [], []
    for recipe in (Calibrate(), Compact(rate_step=0.3), Compact(rate_step=3.0)):
        with torch.inference_mode():
            exact, actual, quantised = recipe.layer(layer, name, x, x, importance)
            linears, folded = fold(layer, quantised, name)
        bits.append(entropy(Plan(tuple(linears), folded)))
        lost.append(float((exact.tokens - actual.tokens).square().mean()))
    assert bits[0] > bits[1] > bits[2] + 1
    assert lost[1] < lost[2]


def test_positions_and_projection_are_stored_in_integers_close_to_them(
    encoder: VisionEncoderWrapper,
) -> None:
    recipe = Compact(rate_step=0.1)
    width = encoder.projection.shape[0]
    hidden = pack([torch.randn(4, 256, width, generator=torch.Generator().manual_seed(0))])
    importance = squared_gradients(encoder, pixels(2), seed=1)
    with torch.inference_mode():
        tables = recipe.tables(encoder, hidden, hidden, importance)
    positions = encoder.tower.embeddings.position_embedding.weight.T
    for name, exact in ((PROJECTION, encoder.projection), (POSITIONS, positions)):
        stored = tables[name].integers * tables[name].scale
        assert stored.shape == exact.shape
        lost = torch.from_numpy(stored) - exact
        assert lost.square().mean() < 0.01 * exact.square().mean(), name
