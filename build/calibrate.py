"""Measures, on a few real images, how each linear layer bears 8 bits, and plans accordingly.

Nothing is decided by a layer's name: for each group of layers that share an input, every way of
quantising it is tried on recorded activations, and the cheapest that is precise enough is taken.
The tensors stay as they are; `Quantise` carries out the plan.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from build import images
from build.checkpoint import PREPROCESSOR, SOURCE, WEIGHTS
from build.images import Folder
from build.pipeline import carry
from build.reference import Geometry, geometry, load
from build.tower import CONFIG
from sidecar.images import PixelValues

PLAN = "plan.json"
SMOOTHING = "smoothing.safetensors"
ROWS = 128  # tokens recorded of each image


@dataclass(frozen=True)
class Input:
    """What went into a layer for one image: some tokens, and the range of each channel over all."""

    rows: Tensor  # [tokens, channels]
    low: Tensor
    high: Tensor


@dataclass(frozen=True)
class Group:
    """Linear layers with one input, and what can take in the divisors of its channels."""

    layers: tuple[str, ...]
    absorber: str | None  # a LayerNorm, or a linear layer; None: nothing linear is in front


@dataclass(frozen=True)
class Way:
    """How a group is quantised. `alpha` None leaves the channels as they are."""

    activations: str  # int8 | int8 per token | float (the weights are 8 bits always)
    alpha: float | None


@dataclass(frozen=True)
class Calibrate:
    """Writes PLAN and SMOOTHING.

    `alphas` are SmoothQuant's: 0 leaves the range of a channel to the activations, 1 moves it into
    the weights. A group takes the way of least error, except that it saves the work of per-token
    scaling where that gains less than `worth`; and above `limit` its activations stay float.
    """

    alphas: tuple[float | None, ...] = (None, 0.25, 0.4, 0.5, 0.6, 0.75)
    worth: float = 1.5  # in squared error
    limit: float = 0.01  # squared error, relative to the squared output
    folder: Folder | None = None

    def __call__(self, source: Path, out: Path) -> None:
        encoder = load(source, "linear")
        with record(encoder.tower) as seen:
            for pixels in self._inputs(geometry(source)):
                encoder.tower(torch.from_numpy(pixels), interpolate_pos_encoding=True)
        plan: dict[str, dict[str, object]] = {}
        smoothing: dict[str, Tensor] = {}
        for group in groups(encoder.tower.config.num_hidden_layers):
            inputs = seen.pop(group.layers[0])
            modules = [encoder.tower.get_submodule(name) for name in group.layers]
            weight = torch.cat([module.weight.T for module in modules], dim=1)
            way, error = self.choose(inputs, weight)
            for name in group.layers:
                plan[f"tower.{name}"] = {**asdict(way), "error": float(f"{error:.3g}")}
                plan[f"tower.{name}"]["absorber"] = group.absorber and f"tower.{group.absorber}"
            if way.alpha is not None:
                smoothing[f"tower.{group.layers[0]}"] = divisor(inputs, weight, way.alpha)
        (out / PLAN).write_text(json.dumps(plan, indent=2) + "\n", "utf-8")
        save_file(smoothing, out / SMOOTHING)
        carry(source, out, WEIGHTS, CONFIG, PREPROCESSOR, SOURCE)

    def choose(self, inputs: list[Input], weight: Tensor) -> tuple[Way, float]:
        """The way to quantise a group with this `weight` [in, out], and its error."""
        best: dict[str, tuple[float, Way]] = {}
        for alpha in self.alphas:
            scale = None if alpha is None else divisor(inputs, weight, alpha)
            for per_token in (False, True):
                way = Way("int8 per token" if per_token else "int8", alpha)
                error = product_error(inputs, weight, scale, per_token)
                if way.activations not in best or error < best[way.activations][0]:
                    best[way.activations] = error, way
        per_tensor, per_token_ = best["int8"], best["int8 per token"]
        error, way = per_tensor if per_tensor[0] <= self.worth * per_token_[0] else per_token_
        if error > self.limit:
            return Way("float", None), error
        return way, error

    def _inputs(self, shape: Geometry) -> Iterator[PixelValues]:
        if self.folder:
            pictures = images.folder(self.folder.path)
        else:
            pictures = {name: images.bundled(name) for name in images.CALIBRATION}
        sides = {shape.native, shape.resolutions[(len(shape.resolutions) - 1) // 2]}
        for rgb in pictures.values():
            for side in sorted(sides):
                yield images.pixel_values(rgb, side, side, shape.normalisation)


def groups(layers: int) -> Iterator[Group]:
    """The linear layers of a SigLIP tower."""
    for number in range(layers):
        layer = f"encoder.layers.{number}"
        attention = f"{layer}.self_attn"
        yield Group(tuple(f"{attention}.{x}_proj" for x in "qkv"), f"{layer}.layer_norm1")
        yield Group((f"{attention}.out_proj",), f"{attention}.v_proj")
        yield Group((f"{layer}.mlp.fc1",), f"{layer}.layer_norm2")
        yield Group((f"{layer}.mlp.fc2",), None)


@contextmanager
def record(tower: nn.Module) -> Iterator[dict[str, list[Input]]]:
    """Note what goes into each linear layer of `tower`, for as long as the context lasts."""
    seen: dict[str, list[Input]] = {}
    hooks = []
    for name, module in tower.named_modules():
        if isinstance(module, nn.Linear):

            def note(_: nn.Module, arguments: tuple[Tensor, ...], name: str = name) -> None:
                x = arguments[0].flatten(0, -2)
                rows = x[:: max(1, len(x) // ROWS)].clone()
                seen.setdefault(name, []).append(Input(rows, x.amin(dim=0), x.amax(dim=0)))

            hooks.append(module.register_forward_pre_hook(note))
    try:
        with torch.inference_mode():
            yield seen
    finally:
        for hook in hooks:
            hook.remove()


def divisor(inputs: list[Input], weight: Tensor, alpha: float) -> Tensor:
    """SmoothQuant's scale for each input channel, around 1. https://arxiv.org/abs/2211.10438"""
    largest = torch.stack([torch.maximum(-x.low, x.high) for x in inputs]).amax(dim=0)
    scale = largest.clamp(min=1e-5) ** alpha / weight.abs().amax(dim=1).clamp(min=1e-5) ** (
        1 - alpha
    )
    return (scale / scale.log().mean().exp()).contiguous()


def product_error(
    inputs: list[Input], weight: Tensor, scale: Tensor | None, per_token: bool
) -> float:
    """Squared error of the integer product, relative to the squared exact one."""
    scale = torch.ones(len(weight)) if scale is None else scale
    rounded = _signed(weight * scale[:, None])
    lost = total = 0.0
    for x in inputs:
        rows, low, high = x.rows / scale, (x.low / scale).min(), (x.high / scale).max()
        token = torch.ones(())
        if per_token:
            token = rows.abs().amax(dim=1, keepdim=True).clamp(min=1e-8)
            rows = rows / token
            low, high = rows.min(), rows.max()
        exact = x.rows @ weight
        product = (_unsigned(rows, low, high) @ rounded) * token
        lost += float((product - exact).square().sum())
        total += float(exact.square().sum())
    return lost / max(total, 1e-30)


def _signed(weight: Tensor) -> Tensor:
    """As `Quantise` rounds weights: symmetric, a scale per output channel."""
    step = (weight.abs().amax(dim=0) / 127).clamp(min=1e-30)
    return (weight / step).round() * step


def _unsigned(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """As DynamicQuantizeLinear rounds activations: 256 steps from `low` to `high`, 0 being one."""
    step = ((high.clamp(min=0) - low.clamp(max=0)) / 255).clamp(min=1e-30)
    zero = (-low.clamp(max=0) / step).round()
    return ((x / step + zero).round().clamp(0, 255) - zero) * step
