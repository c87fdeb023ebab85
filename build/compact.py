"""Calibration for weights that compress: the same graphs as `default`, integers of less entropy.

Rate-distortion GPTQ: one step size for the whole model, spent where it buys most, and a price on
the code length of each integer. Each layer is first refitted to undo what the layers before it
lost. Only what differs from `calibrate.py` lives here.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from build.artifacts import POSITIONS, PROJECTION, Projection, Scheme, Table
from build.calibrate import PACKED, Calibrate, Importance, Packed, Simulated, Site, mean, pack
from build.gptq import factorise, gptq, hessian, thrifty
from build.reference import VisionEncoderWrapper, load

CHUNK = 4096  # tokens at once, which bounds the memory
UNIT = 2e-3  # of `rate_step`
PROBES = 16  # views that the importances come from
TOGETHER = 2  # views in one backward pass
# How much an error counts that all tokens of an image share: it moves the pooled vector.
COMMON = 0.5


@dataclass(frozen=True)
class Compact(Calibrate):
    """Reads CHECKPOINT, writes PLAN, with integers that a Huffman code stores in about 4 bits.

    `rate_step` is the one knob, lambda: the quantisation step relative to what the output of the
    model tolerates. Twice of it saves a bit a weight.
    """

    rate_step: float = 0.645
    price: float = 0.5  # of `thrifty`
    percdamp: float = 0.05
    ridge: float = 0.3  # of the refit, relative to each channel's own variance
    projection: Projection = "projector"
    position: float = 16.0  # of the positions' step: an error in one reaches one token of them all

    def importance(self, checkpoint: Path, pixels: Tensor) -> Importance:
        """By linear layer: the mean square of the gradient of the model's output, [out]."""
        encoder = load(checkpoint, self.projection, attention=PACKED)
        return squared_gradients(encoder, pixels[:PROBES], self.seed)

    def quantise(self, site: Site) -> list[Simulated]:
        """A group's layers in integers that compress."""
        whole = self.compress(site)
        whole.scheme, whole.error = self.compare(site.actual, site.weight, {None: whole.smoothing})
        lost = mean(site.exact) @ site.weight.double()
        lost -= mean(whole.input(site.actual)) @ whole.weight.double()
        if site.gap is not None:
            lost += mean(site.gap)
        return site.split(whole, lost)

    def compress(self, site: Site, smooth: bool = True) -> Simulated:
        """A group's layers in integers that compress; their activations stay in float.

        With `smooth`, an input's step follows its spread; else all inputs of an output share one.
        """
        h = hessian(site.actual.tokens)
        spread = factorise(h, self.percdamp).spread
        typical = spread.log().mean().exp()
        s = (spread / typical).float() if smooth else torch.ones(len(h))
        tolerated = torch.cat([g.clamp(min=1e-3 * g.mean()) for g in site.importance]).rsqrt()
        step = (self.rate_step * UNIT * tolerated / typical).float()
        smoothed = refit(site, h, self.ridge) * s[:, None]
        scale = torch.maximum(step, smoothed.abs().amax(dim=0) / 127)  # int8 must hold the largest
        target = smoothed / scale
        factor = factorise(h / torch.outer(s, s), self.percdamp)
        integers = gptq(target, factor, thrifty(target, self.price))
        return Simulated(integers, scale, s, Scheme("float", None))

    def tables(
        self, encoder: VisionEncoderWrapper, exact: Packed, actual: Packed, importance: Importance
    ) -> dict[str, Table]:
        """The positions and the projection in integers that compress."""

        def pooled(last: Packed) -> Packed:
            batches = []
            for batch in last.unpack():
                side = math.isqrt(batch.shape[1])
                batches.append(encoder.pool(encoder.tower.post_layernorm(batch), side, side))
            return pack(batches)

        inputs, outputs = encoder.projection.shape
        module = nn.Linear(inputs, outputs, bias=False)
        module.weight = nn.Parameter(encoder.projection.T, requires_grad=False)
        site = Site(
            (module,), pooled(exact).tokens, pooled(actual), None, (importance[PROJECTION],)
        )
        projection = self.compress(site, smooth=False)
        positions = encoder.tower.embeddings.position_embedding.weight  # [patches, hidden]
        g = importance[POSITIONS]
        step = (
            self.rate_step * UNIT * self.position * g.clamp(min=1e-3 * g.mean()).rsqrt()
        ).float()
        scale = torch.maximum(step, positions.abs().amax(dim=0) / 127)
        target = positions / scale
        rounded = thrifty(target, self.price)
        integers = torch.stack([rounded(patch, row) for patch, row in enumerate(target)])
        return {
            PROJECTION: table(projection.integers, projection.scale[None]),
            POSITIONS: table(integers.T, scale[:, None]),
        }


def squared_gradients(encoder: VisionEncoderWrapper, pixels: Tensor, seed: int) -> Importance:
    """By linear layer: the mean square of the gradient of the model's output, [out].

    The output is each token's direction; random weights on it stand for all of it.
    """
    random = torch.Generator().manual_seed(seed)
    squares: dict[str, Tensor] = {}
    for part in pixels.split(TOGETHER):
        for name, gradient in _gradients(encoder, part, random).items():
            square = gradient.flatten(0, -2).square().sum(0).double()
            squares[name] = squares.get(name, torch.zeros(())) + square
    return {name: square / len(pixels) for name, square in squares.items()}


def _gradients(
    encoder: VisionEncoderWrapper, pixels: Tensor, random: torch.Generator
) -> dict[str, Tensor]:
    """Of a random sum of the output's directions, by each linear layer's output."""
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda _module, _arguments, output: outputs.update({name: output})

    kept = {
        name: module for name, module in encoder.named_modules() if isinstance(module, nn.Linear)
    }
    kept[POSITIONS] = encoder.tower.embeddings
    handles = [module.register_forward_hook(keep(name)) for name, module in kept.items()]
    with torch.enable_grad():
        projected, _, _ = encoder(pixels.clone().requires_grad_())
        outputs[PROJECTION] = projected
        direction = nn.functional.normalize(projected, dim=-1)
        weight = torch.randn(direction.shape, generator=random)
        shared = (direction.shape[0], 1, direction.shape[2])
        weight += COMMON * torch.randn(shared, generator=random)
        gradients = torch.autograd.grad((direction * weight).sum(), list(outputs.values()))
    for handle in handles:
        handle.remove()
    return dict(zip(outputs, gradients, strict=True))


def table(integers: Tensor, scale: Tensor) -> Table:
    """As the plan holds it."""
    return Table(integers.to(torch.int8).contiguous().numpy(), scale.contiguous().numpy())


def refit(site: Site, h: Tensor, ridge: float) -> Tensor:
    """Weights [in, out] that give, for the actual input, what the float ones give for theirs.

    And, for layers that add to the residual stream, what it lost so far, as far as a linear map of
    the input can. A ridge regression with the input's `h` [in, in]; means are left to the biases.
    """
    weight = site.weight
    x, exact = site.actual.tokens[0], site.exact[0]
    middle = x.mean(dim=0)
    wide = len(weight) < weight.shape[1]  # which of two equal products is the cheaper one
    cross = torch.zeros(len(weight), len(weight) if wide else weight.shape[1])
    gap = torch.zeros_like(weight)
    for start in range(0, len(x), CHUNK):
        part = slice(start, start + CHUNK)
        centred = (x[part] - middle).T
        drift = exact[part] - x[part]
        cross += centred @ (drift if wide else drift @ weight)
        if site.gap is not None:
            gap += centred @ site.gap[0, part]
    cross = (cross @ weight if wide else cross) + gap
    square = h - torch.outer(middle, middle).double()
    own = square.diagonal().clamp(min=0)
    square = square + (ridge * own + 1e-3 * own.mean() + 1e-30).diag()
    fitted: Tensor = weight + torch.linalg.solve(square, cross.double() / len(x)).float()
    return fitted
