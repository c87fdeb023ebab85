"""Rounds each linear layer to 8 bits so that what it makes of a few real images stays the same.

Layer after layer, the images go through the tower twice: in float, and through what was rounded so
far. Nothing is decided by a layer's name: for each group of layers that share an input, every way
of quantising it is tried, and the cheapest that is precise enough is taken. Then the weights are
rounded one input channel after another, each making good what those before it lost (GPTQ,
https://arxiv.org/abs/2210.17323), and the biases take up the mean of what is left.
"""

import copy
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from build import images
from build.checkpoint import PREPROCESSOR, SOURCE, WEIGHTS
from build.images import Folder
from build.pipeline import carry, progress
from build.reference import Geometry, geometry, load
from build.tower import CONFIG
from sidecar.job import PixelValues, Rgb

PLAN = "plan.json"
ROUNDED = "rounded.safetensors"
PICTURES = 16  # that are taken of a folder
TRIED = 256  # tokens on which the ways are tried
SEEN = 8192  # tokens that the rounding looks at
BLOCK = 128  # input channels that are rounded between two large products


@dataclass(frozen=True)
class Group:
    """Linear layers with one input, and what can take in the divisors of its channels."""

    layers: tuple[str, ...]
    absorber: str | None  # a LayerNorm, or a linear layer; None: nothing linear is in front


GROUPS = (
    Group(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "layer_norm1"),
    Group(("self_attn.out_proj",), "self_attn.v_proj"),
    Group(("mlp.fc1",), "layer_norm2"),
    Group(("mlp.fc2",), None),
)


@dataclass(frozen=True)
class Way:
    """How a group is quantised. `alpha` None leaves the channels as they are."""

    activations: str  # int8 | int8 per token | float (the weights are 8 bits always)
    alpha: float | None


class Rounded(nn.Module):
    """A linear layer as the 8-bit graph computes it."""

    def __init__(self, integers: Tensor, scale: Tensor, divisor: Tensor, activations: str) -> None:
        super().__init__()
        self.integers, self.scale = integers, scale  # [in, out], [out]
        self.divisor = divisor  # [in]
        self.activations = activations
        self.bias = torch.zeros_like(scale)

    def forward(self, x: Tensor) -> Tensor:
        return self.input(x) @ (self.integers * self.scale) + self.bias

    def input(self, x: Tensor) -> Tensor:
        """What is left of the input in 8 bits."""
        x = x / self.divisor
        if self.activations == "float":
            return x
        if self.activations == "int8":
            return rounded(x)
        token = x.abs().amax(dim=-1, keepdim=True).clamp(min=1e-8)
        return rounded(x / token) * token


@dataclass(frozen=True)
class Calibrate:
    """Writes PLAN, and ROUNDED: weights, scales and biases; the LayerNorms that took in divisors.

    `alphas` are SmoothQuant's: 0 leaves the range of a channel to the activations, 1 moves it into
    the weights. A group takes the way of least error, except that it saves the work of per-token
    scaling where that gains less than `worth`; and above `limit` its activations stay float.
    """

    alphas: tuple[float | None, ...] = (None, 0.25, 0.4, 0.5, 0.6, 0.75)
    worth: float = 1.2  # in squared error
    limit: float = 0.01  # squared error, relative to the squared output
    damping: float = 0.01  # of the rounding, relative to the mean square of a channel
    folder: Folder | None = None

    def __call__(self, source: Path, out: Path) -> None:
        tower = load(source, "linear").tower
        plan: dict[str, dict[str, object]] = {}
        tensors: dict[str, Tensor] = {}
        with torch.inference_mode():
            pixels = torch.from_numpy(self._pixels(geometry(source)))
            exact = actual = tower.embeddings(pixels, interpolate_pos_encoding=True)
            for number, layer in enumerate(progress(tower.encoder.layers, "layers")):
                twin = copy.deepcopy(layer)
                paths = inputs(layer, exact), inputs(twin, actual)
                for group in GROUPS:
                    modules = [layer.get_submodule(name) for name in group.layers]
                    way, made = self.round(modules, next(paths[0]), next(paths[1]))
                    for name, module in zip(group.layers, made, strict=True):
                        twin.set_submodule(name, module)
                        plan[f"tower.encoder.layers.{number}.{name}"] = way
                exact, actual = next(paths[0]), next(paths[1])
                for name, tensor in written(layer, twin).items():
                    tensors[f"tower.encoder.layers.{number}.{name}"] = tensor
        (out / PLAN).write_text(json.dumps(plan, indent=2) + "\n", "utf-8")
        save_file(tensors, out / ROUNDED)
        carry(source, out, WEIGHTS, CONFIG, PREPROCESSOR, SOURCE)

    def round(
        self, modules: Sequence[Any], exact: Tensor, actual: Tensor
    ) -> tuple[dict[str, object], list[Rounded]]:
        """How a group is quantised, and its layers in 8 bits.

        `exact` is their input in float, `actual` what it is after the layers rounded so far.
        """
        weight = torch.cat([module.weight.T for module in modules], dim=1)
        way, error = self.choose(actual, weight)
        scale = divisor(actual, weight, way.alpha)
        smoothed = weight * scale[:, None]
        _, steps = signed(smoothed)
        seen = Rounded(smoothed, steps, scale, way.activations).input(actual)
        integers = gptq(smoothed / steps, moments(some(seen, SEEN)), self.damping)
        lost = mean(exact) @ weight.double() - mean(seen) @ (integers * steps).double()
        made = []
        start = 0
        for module in modules:
            part = slice(start, start := start + module.weight.shape[0])
            made.append(Rounded(integers[:, part], steps[part], scale, way.activations))
            made[-1].bias = module.bias + lost[part].float()
        return {**asdict(way), "error": float(f"{error:.3g}")}, made

    def choose(self, x: Tensor, weight: Tensor) -> tuple[Way, float]:
        """The way to quantise a group with this `weight` [in, out], and its error."""
        tried = some(x, TRIED)
        exact = tried @ weight
        total = exact.square().sum().clamp(min=1e-30)
        ends = x.amin(dim=1, keepdim=True), x.amax(dim=1, keepdim=True)  # of the whole tensor
        whole = torch.cat([tried, *ends], dim=1)
        best: dict[str, tuple[float, Way]] = {}
        for alpha in self.alphas:
            scale = divisor(x, weight, alpha)
            integers, steps = signed(weight * scale[:, None])
            for activations in ("int8", "int8 per token"):
                layer = Rounded(integers, steps, scale, activations)
                found = layer(whole if activations == "int8" else tried)[:, : tried.shape[1]]
                error = float((found - exact).square().sum() / total)
                if activations not in best or error < best[activations][0]:
                    best[activations] = error, Way(activations, alpha)
        per_tensor, per_token = best["int8"], best["int8 per token"]
        error, way = per_tensor if per_tensor[0] <= self.worth * per_token[0] else per_token
        if error > self.limit:
            return Way("float", None), error
        return way, error

    def _pixels(self, shape: Geometry) -> PixelValues:
        """[n, 3, side, side]: pictures, and the middle of each, enlarged.

        Smooth pictures bear rounding worst: all their tokens err in one direction. At half the
        native size, four times as many fit into the time.
        """
        if self.folder:
            pictures = list(images.folder(self.folder.path).values())
        else:
            pictures = [images.bundled(name) for name in images.CALIBRATION]
        pictures = pictures[:: -(-len(pictures) // PICTURES)]
        side = shape.resolutions[(len(shape.resolutions) - 1) // 2]
        return np.concatenate(
            [
                images.pixel_values(part, side, side, shape.normalisation)
                for rgb in pictures
                for part in (rgb, middle(rgb))
            ]
        )


def inputs(layer: Any, hidden: Tensor) -> Iterator[Tensor]:
    """The input of each of GROUPS in turn, then the layer's output.

    A linear layer is run when what follows it is asked for: until then it may be replaced.
    """
    attention, mlp = layer.self_attn, layer.mlp
    x = layer.layer_norm1(hidden)
    yield x
    q, k, v = (
        linear(x).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    x = nn.functional.scaled_dot_product_attention(q, k, v, scale=attention.scale)
    x = x.transpose(1, 2).flatten(2)
    del q, k, v
    yield x
    hidden = hidden + attention.out_proj(x)
    x = layer.layer_norm2(hidden)
    yield x
    x = mlp.activation_fn(mlp.fc1(x))
    yield x
    yield hidden + mlp.fc2(x)


def written(layer: Any, twin: Any) -> dict[str, Tensor]:
    """What the graph needs of a layer whose linear layers were rounded in `twin`."""
    tensors: dict[str, Tensor] = {}
    for group in GROUPS:
        for name in group.layers:
            module = twin.get_submodule(name)
            tensors[f"{name}.weight_int8"] = module.integers.to(torch.int8)
            tensors[f"{name}.weight_scale"] = module.scale.clone()
            tensors[f"{name}.bias"] = module.bias.clone()
    for group in GROUPS:
        scale = twin.get_submodule(group.layers[0]).divisor
        if group.absorber is None:
            tensors[f"{group.layers[0]}.smoothing"] = 1 / scale
        elif f"{group.absorber}.weight_scale" in tensors:
            tensors[f"{group.absorber}.weight_scale"] /= scale
            tensors[f"{group.absorber}.bias"] /= scale
        else:
            for kind in ("weight", "bias"):
                tensors[f"{group.absorber}.{kind}"] = (
                    getattr(layer.get_submodule(group.absorber), kind) / scale
                )
    return tensors


def divisor(x: Tensor, weight: Tensor, alpha: float | None) -> Tensor:
    """SmoothQuant's scale for each input channel, around 1. https://arxiv.org/abs/2211.10438"""
    if alpha is None:
        return torch.ones(len(weight))
    largest = x.abs().amax(dim=(0, 1)).clamp(min=1e-5)
    scale = largest**alpha / weight.abs().amax(dim=1).clamp(min=1e-5) ** (1 - alpha)
    return (scale / scale.log().mean().exp()).contiguous()


def middle(rgb: Rgb) -> Rgb:
    """An eighth of the height and width."""
    height, width, _ = rgb.shape
    down, across = max(1, height // 8), max(1, width // 8)
    top, left = (height - down) // 2, (width - across) // 2
    return rgb[top : top + down, left : left + across]


def some(x: Tensor, count: int) -> Tensor:
    """About `count` of the tokens, evenly spread over each image."""
    n, tokens, _ = x.shape
    return x[:, :: max(1, n * tokens // count)]


def mean(x: Tensor) -> Tensor:
    """Over all tokens, in double precision."""
    return x.mean(dim=1, dtype=torch.float64).mean(dim=0)


def moments(x: Tensor) -> Tensor:
    """The mean over all tokens of the product of each two channels: [channels, channels]."""
    rows = x.flatten(0, 1)
    return (rows.T @ rows).double() / len(rows)


def gptq(weight: Tensor, moments: Tensor, damping: float) -> Tensor:
    """Round [in, out], whose unit is one step, so that products with such inputs change least."""
    order = moments.diagonal().argsort(descending=True, stable=True)
    damped = moments[order][:, order]
    damped.diagonal().add_(damping * damped.diagonal().mean() + 1e-30)
    left = weight.double()[order]
    with one_thread():
        root = torch.linalg.cholesky(damped.flip(0, 1)).flip(0, 1)
        inverse = torch.linalg.solve_triangular(root, torch.eye(len(root)).double(), upper=True)
        for start in range(0, len(left), BLOCK):
            block = slice(start, start + BLOCK)
            errors = torch.empty_like(left[block])
            for i, share in enumerate(inverse[block, block]):
                whole = left[start + i].round().clamp(-127, 127)
                errors[i] = (left[start + i] - whole) / share[i]
                left[block][i + 1 :] -= torch.outer(share[i + 1 :], errors[i])
                left[start + i] = whole
            left[start + BLOCK :] -= inverse[block, start + BLOCK :].T @ errors
    integers = torch.empty_like(weight)
    integers[order] = left.float()
    return integers


@contextmanager
def one_thread() -> Iterator[None]:
    """For many small operations, in which threads would mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def signed(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Integers of [in, out] from -127 to 127, and a scale per output channel."""
    steps = (weight.abs().amax(dim=0) / 127).clamp(min=1e-30)
    return (weight / steps).round(), steps


def rounded(x: Tensor) -> Tensor:
    """As DynamicQuantizeLinear does, image by image: 256 steps over the range, 0 being one."""
    low, high = x.amin(dim=(1, 2), keepdim=True), x.amax(dim=(1, 2), keepdim=True)
    step = ((high.clamp(min=0) - low.clamp(max=0)) / 255).clamp(min=1e-30)
    zero = (-low.clamp(max=0) / step).round()
    return ((x / step + zero).round().clamp(0, 255) - zero) * step
