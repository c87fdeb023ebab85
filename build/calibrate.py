"""Quantises each linear layer to 8 bits so that its output on a few real images stays the same.

Layer after layer, the images go through the tower twice: in float, and through the layers that
were quantised so far. For each group of layers that share an input, every scheme is tried, and the
cheapest that is precise enough is used. Then GPTQ chooses the integers, and the biases take up the
mean error that remains. Only calibration lives here: no ONNX.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from build import images
from build.artifacts import (
    Artifact,
    Geometry,
    Inputs,
    Plan,
    QuantisedLinear,
    Scheme,
    read_geometry,
    write_plan,
)
from build.gptq import gptq, hessian
from build.reference import load
from sidecar.job import PixelValues, Rgb

PICTURES = 16  # that are taken of a folder
SEARCH_TOKENS = 256  # on which the schemes are compared
CALIBRATION_TOKENS = 8192  # that the Hessian is made of


@dataclass(frozen=True)
class Folder:
    """A user's own images; `digest` changes with their content."""

    path: Path
    digest: str

    @classmethod
    def at(cls, path: Path) -> "Folder":
        """Raises OSError where there is no image."""
        digest = sha256()
        for file in images.files(path):
            digest.update(file.read_bytes())
        return cls(path, digest.hexdigest()[:16])


@dataclass(frozen=True)
class Group:
    """Linear layers that share an input, and the module that their smoothing is folded into."""

    layers: tuple[str, ...]
    folded_into: str | None  # a LayerNorm or a linear layer; None: there is a GELU in front


GROUPS = (
    Group(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "layer_norm1"),
    Group(("self_attn.out_proj",), "self_attn.v_proj"),
    Group(("mlp.fc1",), "layer_norm2"),
    Group(("mlp.fc2",), None),
)


class Simulated(nn.Module):
    """A quantised linear layer, computed in float as the 8-bit graph computes it."""

    def __init__(self, integers: Tensor, scale: Tensor, smoothing: Tensor, scheme: Scheme) -> None:
        super().__init__()
        self.integers, self.scale = integers, scale  # [in, out], [out]
        self.smoothing = smoothing  # [in]
        self.scheme = scheme
        self.error = 0.0
        self.bias = torch.zeros_like(scale)

    def forward(self, x: Tensor) -> Tensor:
        """[n, tokens, in] to [n, tokens, out]."""
        return self.input(x) @ (self.integers * self.scale) + self.bias

    def input(self, x: Tensor) -> Tensor:
        """The input [n, tokens, in], smoothed, and rounded to the values that 8 bits can hold."""
        x = x / self.smoothing
        match self.scheme.activations:
            case "float":
                return x
            case "per_tensor":
                return fake_quantise(x)
            case "per_token":
                token = x.abs().amax(dim=-1, keepdim=True).clamp(min=1e-8)
                return fake_quantise(x / token) * token


@dataclass(frozen=True)
class Calibrate:
    """Reads CHECKPOINT, writes PLAN.

    Each group uses the scheme with the lowest error. Per-tensor activations are preferred unless
    per-token scales reduce the squared error by more than `per_token_gain`. If even the best scheme
    exceeds `max_error`, activations stay in float.
    """

    alphas: tuple[float | None, ...] = (None, 0.25, 0.4, 0.5, 0.6, 0.75)
    per_token_gain: float = 1.2  # a factor
    max_error: float = 0.01  # squared error, relative to the squared output
    percdamp: float = 0.01  # of GPTQ
    folder: Folder | None = None

    reads: ClassVar = (Artifact.CHECKPOINT,)
    writes: ClassVar = Artifact.PLAN

    def __call__(self, inputs: Inputs, out: Path) -> None:
        checkpoint = inputs[Artifact.CHECKPOINT]
        tower = load(checkpoint, "linear").tower
        linears: list[QuantisedLinear] = []
        folded: dict[str, Any] = {}
        with torch.inference_mode():
            pixels = torch.from_numpy(self._pixels(read_geometry(checkpoint)))
            exact = actual = tower.embeddings(pixels, interpolate_pos_encoding=True)
            for number, layer in enumerate(inputs.progress(tower.encoder.layers, "layers")):
                exact, actual, quantised = self.layer(layer, exact, actual)
                made, parameters = fold(layer, quantised, f"tower.encoder.layers.{number}")
                linears += made
                folded |= parameters
        write_plan(Plan(tuple(linears), folded), out)

    def layer(
        self, layer: nn.Module, exact: Tensor, actual: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Simulated]]:
        """Quantise one encoder layer.

        `exact` [n, tokens, hidden] is its input in float, `actual` its input after the layers
        quantised so far. Both outputs, and the quantised linear layers by name.
        """
        with recorded(layer) as float_inputs:
            exact = run(layer, exact)
        quantised: dict[str, Simulated] = {}

        def quantise(group: Group, x: Tensor) -> None:
            modules = [layer.get_submodule(name) for name in group.layers]
            layers = self.quantise(modules, float_inputs[group.layers[0]], x)
            quantised.update(zip(group.layers, layers, strict=True))

        with replaced(layer, quantised, quantise):
            actual = run(layer, actual)
        return exact, actual, quantised

    def quantise(self, modules: Sequence[Any], exact: Tensor, actual: Tensor) -> list[Simulated]:
        """A group's layers in 8 bits; `exact` and `actual` are their input, as in `layer`."""
        weight = torch.cat([module.weight.T for module in modules], dim=1)
        scheme, error = self.choose(actual, weight)
        s = smoothing(actual, weight, scheme.alpha)
        smoothed = weight * s[:, None]
        _, scale = symmetric(smoothed)
        x = Simulated(smoothed, scale, s, scheme).input(actual)
        sample = sample_tokens(x, CALIBRATION_TOKENS)
        integers = gptq(smoothed / scale, hessian(sample), self.percdamp)
        lost = mean(exact) @ weight.double() - mean(x) @ (integers * scale).double()
        layers = []
        start = 0
        for module in modules:
            part = slice(start, start := start + module.weight.shape[0])
            layers.append(Simulated(integers[:, part], scale[part], s, scheme))
            layers[-1].error = float(f"{error:.3g}")
            layers[-1].bias = module.bias + lost[part].float()
        return layers

    def choose(self, x: Tensor, weight: Tensor) -> tuple[Scheme, float]:
        """The scheme for a group with input `x` [n, tokens, in] and `weight` [in, out].

        With it the squared error that it makes, relative to the squared output.
        """
        sample = sample_tokens(x, SEARCH_TOKENS)
        exact = sample @ weight
        total = exact.square().sum().clamp(min=1e-30)
        # A per-tensor range is that of all tokens: each channel's extremes join as two tokens.
        extremes = x.amin(dim=1, keepdim=True), x.amax(dim=1, keepdim=True)
        whole = torch.cat([sample, *extremes], dim=1)
        best: dict[str, tuple[float, Scheme]] = {}
        for alpha in self.alphas:
            s = smoothing(x, weight, alpha)
            integers, scale = symmetric(weight * s[:, None])
            for scheme in (Scheme("per_tensor", alpha), Scheme("per_token", alpha)):
                layer = Simulated(integers, scale, s, scheme)
                kind = scheme.activations
                y = layer(whole if kind == "per_tensor" else sample)[:, : sample.shape[1]]
                error = float((y - exact).square().sum() / total)
                if kind not in best or error < best[kind][0]:
                    best[kind] = error, scheme
        per_tensor, per_token = best["per_tensor"], best["per_token"]
        prefer_tensor = per_tensor[0] <= self.per_token_gain * per_token[0]
        error, scheme = per_tensor if prefer_tensor else per_token
        if error > self.max_error:
            return Scheme("float", None), error
        return scheme, error

    def _pixels(self, shape: Geometry) -> PixelValues:
        """[n, 3, side, side]: pictures, and the center of each, enlarged.

        Smooth pictures suffer most from quantisation: all their tokens err in one direction. At
        half the native size, four times as many fit into the time.
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
                for part in (rgb, center_crop(rgb))
            ]
        )


def run(layer: nn.Module, hidden: Tensor) -> Tensor:
    """Transformers' own encoder layer: [n, tokens, hidden] to the same."""
    output = layer(hidden, None)
    return output if isinstance(output, Tensor) else output[0]


@contextmanager
def recorded(layer: nn.Module) -> Iterator[dict[str, Tensor]]:
    """While inside: the input of each linear layer of GROUPS, by name, once `layer` has run."""
    inputs: dict[str, Tensor] = {}

    def record(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, arguments: inputs.update({name: arguments[0]})

    handles = [
        layer.get_submodule(name).register_forward_pre_hook(record(name))
        for group in GROUPS
        for name in group.layers
    ]
    try:
        yield inputs
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def replaced(
    layer: nn.Module,
    quantised: dict[str, Simulated],
    quantise: Callable[[Group, Tensor], None],
) -> Iterator[None]:
    """While inside: each linear layer of GROUPS gives what its quantised version gives.

    When the first layer of a group runs, `quantise` is called with the group's input and must add
    its layers to `quantised`.
    """

    def replace(group: Group, name: str) -> Callable[..., Tensor]:
        def hook(_: nn.Module, arguments: tuple[Tensor, ...], _output: Tensor) -> Tensor:
            if name not in quantised:
                quantise(group, arguments[0])
            result: Tensor = quantised[name](arguments[0])
            return result

        return hook

    handles = [
        layer.get_submodule(name).register_forward_hook(replace(group, name))
        for group in GROUPS
        for name in group.layers
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def fold(
    layer: nn.Module, quantised: dict[str, Simulated], prefix: str
) -> tuple[list[QuantisedLinear], dict[str, Any]]:
    """A layer's part of the plan: its linear layers, and the LayerNorms that took in smoothing.

    Where the module in front is linear or a LayerNorm, dividing its output by s costs nothing.
    """
    quantised = {name: copy.copy(module) for name, module in quantised.items()}
    parameters: dict[str, Any] = {}
    explicit: dict[str, Tensor] = {}
    for group in GROUPS:
        s = quantised[group.layers[0]].smoothing
        if group.folded_into is None:
            explicit |= dict.fromkeys(group.layers, 1 / s)
        elif group.folded_into in quantised:
            module = quantised[group.folded_into]
            module.scale, module.bias = module.scale / s, module.bias / s
        else:
            norm = layer.get_submodule(group.folded_into)
            for kind in ("weight", "bias"):
                value = getattr(norm, kind) / s
                parameters[f"{prefix}.{group.folded_into}.{kind}"] = value.numpy()
    linears = [
        QuantisedLinear(
            name=f"{prefix}.{name}",
            scheme=module.scheme,
            error=module.error,
            weight=module.integers.to(torch.int8).numpy(),
            scale=module.scale.numpy(),
            bias=module.bias.numpy(),
            smoothing=explicit[name].numpy() if name in explicit else None,
        )
        for group in GROUPS
        for name in group.layers
        for module in (quantised[name],)
    ]
    return linears, parameters


def smoothing(x: Tensor, weight: Tensor, alpha: float | None) -> Tensor:
    """SmoothQuant's s for each input channel [in], geometric mean 1; x is divided by it.

    s = max|x|^alpha / max|W|^(1 - alpha) for x [n, tokens, in] and W [in, out]. Alpha 0 leaves
    the range of a channel to the activations, 1 moves it into the weights. https://arxiv.org/abs/2211.10438
    """
    if alpha is None:
        return torch.ones(len(weight))
    largest = x.abs().amax(dim=(0, 1)).clamp(min=1e-5)
    s = largest**alpha / weight.abs().amax(dim=1).clamp(min=1e-5) ** (1 - alpha)
    return (s / s.log().mean().exp()).contiguous()


def center_crop(rgb: Rgb) -> Rgb:
    """The middle of a picture, an eighth of its height and width."""
    height, width, _ = rgb.shape
    down, across = max(1, height // 8), max(1, width // 8)
    top, left = (height - down) // 2, (width - across) // 2
    return rgb[top : top + down, left : left + across]


def sample_tokens(x: Tensor, count: int) -> Tensor:
    """About `count` of the tokens of [n, tokens, channels], evenly spread over each image."""
    n, tokens, _ = x.shape
    return x[:, :: max(1, n * tokens // count)]


def mean(x: Tensor) -> Tensor:
    """Over all tokens of [n, tokens, channels], in double precision: [channels]."""
    return x.mean(dim=1, dtype=torch.float64).mean(dim=0)


def symmetric(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round [in, out] to integers from -127 to 127, with a scale per output channel [out]."""
    scale = (weight.abs().amax(dim=0) / 127).clamp(min=1e-30)
    return (weight / scale).round(), scale


def fake_quantise(x: Tensor) -> Tensor:
    """As DynamicQuantizeLinear and back, image by image: uint8 over the range, zero among them."""
    low, high = x.amin(dim=(1, 2), keepdim=True), x.amax(dim=(1, 2), keepdim=True)
    scale = ((high.clamp(min=0) - low.clamp(max=0)) / 255).clamp(min=1e-30)
    zero_point = (-low.clamp(max=0) / scale).round()
    return ((x / scale + zero_point).round().clamp(0, 255) - zero_point) * scale
