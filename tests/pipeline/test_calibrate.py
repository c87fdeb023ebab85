"""Rounding that knows what will be multiplied, against rounding to the nearest."""

import torch
from torch import Tensor

from build.calibrate import Rounded, gptq, moments, signed


def similar_tokens() -> Tensor:
    """[images, tokens, channels]: each token is near its image's mean, as in a smooth picture."""
    torch.manual_seed(0)
    return torch.randn(4, 1, 64) + 0.1 * torch.randn(4, 256, 64)


def test_weights_are_rounded_so_that_the_products_change_least() -> None:
    x, weight = similar_tokens(), torch.randn(64, 32)
    nearest, steps = signed(weight)
    chosen = gptq(weight / steps, moments(x), damping=0.01)
    lost = [
        (x @ (integers * steps - weight)).mean(dim=1).square().mean()
        for integers in (nearest, chosen)
    ]
    assert chosen.equal(chosen.round())
    assert chosen.abs().max() <= 127
    assert lost[1] < lost[0] / 10


def test_a_constant_input_is_rounded_without_loss_in_its_zeros() -> None:
    x = torch.zeros(1, 8, 4)
    for activations in ("int8", "int8 per token", "float"):
        layer = Rounded(torch.ones(4, 2), torch.ones(2), torch.ones(4), activations)
        assert layer(x).eq(0).all()
