"""GPTQ against rounding to nearest, SmoothQuant by hand, and how a scheme is chosen."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from build.artifacts import Activations, Plan, Scheme, read_plan, write_plan
from build.calibrate import (
    GROUPS,
    PACKED,
    Calibrate,
    Packed,
    Simulated,
    fake_quantise,
    fold,
    pack,
    run,
    sample_tokens,
    smoothing,
    symmetric,
)
from build.gptq import factorise, gptq, hessian, inverse_cholesky, nearest, thrifty
from tests import tiny


def similar_tokens() -> Tensor:
    """[images, tokens, channels]: each token is near its image's mean, as in a smooth picture."""
    torch.manual_seed(0)
    return torch.randn(4, 1, 64) + 0.1 * torch.randn(4, 256, 64)


def test_gptq_loses_less_of_the_products_than_rounding_to_nearest() -> None:
    x, weight = similar_tokens(), torch.randn(64, 32)
    nearest, scale = symmetric(weight)
    chosen = gptq(weight / scale, factorise(hessian(x), percdamp=0.01))
    lost = [
        (x @ (integers * scale - weight)).mean(dim=1).square().mean()
        for integers in (nearest, chosen)
    ]
    assert chosen.equal(chosen.round())
    assert chosen.abs().max() <= 127
    assert lost[1] < lost[0] / 10


def test_gptq_of_uncorrelated_inputs_rounds_to_nearest() -> None:
    weight = 5 * torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    assert gptq(weight, factorise(torch.eye(8).double(), percdamp=0.01)).equal(weight.round())


def test_gptq_by_hand() -> None:
    """Two equal inputs: what the first row is rounded off by, the second makes good."""
    h = torch.ones(2, 2).double()
    chosen = gptq(torch.tensor([[0.4], [0.4]]), factorise(h, percdamp=1e-9))
    assert chosen.sum() == 1  # 0.4 + 0.4 = 0.8; rounding to nearest gives 0


def test_the_hessian_is_the_mean_of_the_outer_products() -> None:
    x = torch.tensor([[[1.0, 2.0], [3.0, 0.0]]])
    assert hessian(x).tolist() == [[5, 1], [1, 2]]


def test_the_inverse_cholesky_factor_multiplies_to_the_inverse() -> None:
    h = torch.tensor([[4.0, 2.0], [2.0, 3.0]]).double()
    u = inverse_cholesky(h)
    assert u[1, 0] == 0
    assert torch.allclose(u.T @ u, torch.linalg.inv(h))


def test_the_spread_of_a_channel_is_what_the_others_do_not_explain() -> None:
    # x1 has a variance of 4; of x2's variance of 2, x1 explains 2 * 2 / 4 = 1.
    h = torch.tensor([[4.0, 2.0], [2.0, 2.0]]).double()
    assert factorise(h, percdamp=0).spread.tolist() == pytest.approx([2**0.5, 2**0.5])
    assert factorise(h.diagonal().diag(), percdamp=0).spread.tolist() == pytest.approx([2, 2**0.5])


def test_thrifty_rounding_costs_little_error_and_saves_bits() -> None:
    weight = torch.randn(64, 2048, generator=torch.Generator().manual_seed(0))
    near = torch.stack([nearest(i, row) for i, row in enumerate(weight)])
    rounded = thrifty(weight, price=1.0)
    cheap = torch.stack([rounded(i, row) for i, row in enumerate(weight)])
    assert (cheap.abs() <= near.abs()).all()
    assert ((cheap - near).abs() <= 1).all()
    saved = entropy(near) - entropy(cheap)
    lost = (cheap - weight).square().mean() / (near - weight).square().mean()
    assert saved > 0.05
    # A coarser step that saves as many bits would lose 4 ** saved, at least.
    assert lost < 4**saved
    free = thrifty(weight, price=0.0)
    assert torch.stack([free(i, row) for i, row in enumerate(weight)]).equal(near)


def entropy(integers: Tensor) -> float:
    """Bits an integer, in one table."""
    p = torch.bincount((integers + 128).long().flatten()).double() / integers.numel()
    p = p[p > 0]
    return float(-(p * p.log2()).sum())


def test_smoothing_by_hand() -> None:
    """SmoothQuant, equation 4: s = max|x|^a / max|W|^(1-a), here scaled to a mean of 1."""
    x = torch.tensor([[[16.0, 1.0], [-4.0, 0.5]]])  # largest 16 and 1
    weight = torch.tensor([[1.0, -0.5], [4.0, 2.0]])  # largest 1 and 4
    assert smoothing(x, weight, 0.5).tolist() == pytest.approx([8**0.5, 1 / 8**0.5])
    assert smoothing(x, weight, 1).tolist() == pytest.approx([4, 0.25])
    assert smoothing(x, weight, 0).tolist() == pytest.approx([2, 0.5])  # 1 and 1/4, by their mean
    assert smoothing(x, weight, None).tolist() == [1, 1]


def test_fake_quantise_by_hand() -> None:
    """From -1 to 4.1: the scale is 0.02, the zero point 50, so 0.013 becomes 0.02."""
    x = torch.tensor([[[-1.0, 0.013], [0.0, 4.1]]])
    assert fake_quantise(x).flatten().tolist() == pytest.approx([-1, 0.02, 0, 4.1], abs=1e-6)
    positive = torch.tensor([[[1.0, 2.55]]])  # the range begins at zero all the same
    assert fake_quantise(positive).flatten().tolist() == pytest.approx([1, 2.55], abs=1e-6)


def test_each_image_has_a_range_of_its_own() -> None:
    small, large = torch.randn(1, 8, 4), 1000 * torch.randn(1, 8, 4)
    both = fake_quantise(torch.cat([small, large]))
    assert both[:1].equal(fake_quantise(small))


def test_symmetric_weights_have_a_scale_per_output_channel() -> None:
    integers, scale = symmetric(torch.tensor([[1.27, -254.0], [-0.5, 3.0]]))
    assert scale.tolist() == pytest.approx([0.01, 2])
    assert integers.tolist() == [[127, -127], [-50, 2]]


@pytest.mark.parametrize("activations", ["per_tensor", "per_token", "float"])
def test_a_constant_input_is_quantised_without_loss_in_its_zeros(activations: Activations) -> None:
    scheme = Scheme(activations, None)
    layer = Simulated(torch.ones(4, 2), torch.ones(2), torch.ones(4), scheme)
    assert layer(torch.zeros(1, 8, 4)).eq(0).all()


def even_tokens() -> Tensor:
    """[2, 128, 32], nothing stands out."""
    return 2 * torch.rand(2, 128, 32, generator=torch.Generator().manual_seed(1)) - 1


def weight() -> Tensor:
    return torch.randn(32, 16, generator=torch.Generator().manual_seed(2))


def test_even_inputs_get_per_tensor_activations() -> None:
    scheme, error = Calibrate().choose(pack([even_tokens()]), weight())
    assert scheme.activations == "per_tensor"
    assert 0 < error < 1e-3


def test_tokens_of_very_different_size_get_scales_of_their_own() -> None:
    x = even_tokens()
    x[:, ::2] *= 100
    x[:, 1::2] *= 0.1
    # Only the relative error of all tokens counts: with the large ones gone, the small decide.
    scheme, _ = Calibrate(per_token_gain=1.0).choose(pack([x]), weight())
    assert scheme.activations == "per_token"
    scheme, _ = Calibrate(per_token_gain=1e9).choose(pack([x]), weight())
    assert scheme.activations == "per_tensor"  # a gain that is not worth its nodes


def test_outliers_in_a_channel_are_smoothed() -> None:
    x = even_tokens()
    x[:, :, 3] *= 100
    w = weight()
    w[3] /= 100
    scheme, error = Calibrate().choose(pack([x]), w)
    assert scheme.alpha is not None
    _, plain = Calibrate(alphas=(None,)).choose(pack([x]), w)
    assert error < plain / 10


def test_activations_that_no_scheme_serves_stay_float() -> None:
    scheme, error = Calibrate(max_error=1e-9).choose(pack([even_tokens()]), weight())
    assert scheme == Scheme("float", None)
    assert error > 1e-9


def test_tokens_are_sampled_evenly() -> None:
    x = torch.arange(12.0).reshape(1, 12, 1)
    assert sample_tokens(x, 4).flatten().tolist() == [0, 3, 6, 9]
    assert sample_tokens(x, 100).equal(x)


@pytest.fixture(scope="module")
def layer() -> torch.nn.Module:
    """An encoder layer of Transformers."""
    tower = tiny.model().model.vision_tower
    tower.config._attn_implementation = PACKED
    found: torch.nn.Module = tower.encoder.layers[0]
    return found


def hidden() -> Packed:
    """Two images of 64 tokens, three of 16."""
    random = torch.Generator().manual_seed(3)
    return pack([torch.randn(n, tokens, 64, generator=random) for n, tokens in ((2, 64), (3, 16))])


def test_packed_images_do_not_see_each_other(layer: Any) -> None:
    x = hidden()
    with torch.inference_mode():
        together = run(layer, x).unpack()
        alone = [run(layer, pack([image[None]])).tokens for part in x.unpack() for image in part]
        layer.self_attn.config._attn_implementation = "sdpa"
        try:
            expected = layer(x.unpack()[0], None)
        finally:
            layer.self_attn.config._attn_implementation = PACKED
    for one, other in zip([image for part in together for image in part], alone, strict=True):
        assert torch.allclose(one, other[0], atol=1e-5)
    assert torch.allclose(together[0], expected, atol=1e-5)


def test_a_layer_is_quantised_through_its_own_forward(layer: torch.nn.Module) -> None:
    x = hidden()
    before = copy.deepcopy(layer.state_dict())
    with torch.inference_mode():
        exact, actual, quantised = Calibrate().layer(layer, "layer", x, x)
        assert exact.tokens.equal(run(layer, x).tokens)  # no hook is left
    assert quantised.keys() == {name for group in GROUPS for name in group.layers}
    lost = (actual.tokens - exact.tokens).square().mean()
    assert 0 < lost < 1e-3 * exact.tokens.square().mean()
    assert all(value.equal(before[name]) for name, value in layer.state_dict().items())


def test_the_plan_computes_what_the_calibration_saw(layer: torch.nn.Module) -> None:
    """With the plan's weights and folded smoothing, the layer gives the same in float."""
    x = hidden()
    with torch.inference_mode():
        _, actual, quantised = Calibrate(alphas=(0.5,)).layer(layer, "layer", x, x)
        linears, folded = fold(layer, quantised, "layer")
        planned = copy.deepcopy(layer)
        for name, array in folded.items():
            planned.get_parameter(name.removeprefix("layer.")).copy_(torch.from_numpy(array))
        for linear in linears:
            module = planned.get_submodule(linear.name.removeprefix("layer."))
            w = torch.from_numpy(linear.weight * linear.scale)
            if linear.smoothing is not None:
                w = torch.from_numpy(linear.smoothing)[:, None] * w
            module.get_parameter("weight").copy_(w.T)
            module.get_parameter("bias").copy_(torch.from_numpy(linear.bias))
        result = run(planned, x)
    lost = (result.tokens - actual.tokens).square().mean()
    assert lost < 1e-3 * actual.tokens.square().mean()
    assert {linear.name for linear in linears if linear.smoothing is not None} == {"layer.mlp.fc2"}


def test_a_plan_is_read_as_it_was_written(layer: torch.nn.Module, tmp_path: Path) -> None:
    x = hidden()
    with torch.inference_mode():
        _, _, quantised = Calibrate().layer(layer, "layer", x, x)
        linears, folded = fold(layer, quantised, "layer")
    plan = Plan(tuple(linears), folded)
    write_plan(plan, tmp_path)
    again = read_plan(tmp_path)
    assert [(a.name, a.scheme, a.error) for a in again.linears] == [
        (a.name, a.scheme, a.error) for a in plan.linears
    ]
    for a, b in zip(again.linears, plan.linears, strict=True):
        for kind in ("weight", "scale", "bias", "smoothing"):
            one, other = getattr(a, kind), getattr(b, kind)
            assert (one is None) == (other is None)
            assert one is None or ((one == other).all() and one.dtype == other.dtype)
    assert again.folded.keys() == plan.folded.keys()
