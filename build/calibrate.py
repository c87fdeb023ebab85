"""Quantises each linear layer to 8 bits so that its output on a few real images stays the same.

The images are a few pictures at half the native size, and many small views (`views.py`). Layer
after layer they go through the tower twice: in float, and through the layers that were quantised so
far. The tokens of all images are packed into one sequence [1, tokens, channels]; only attention and
per-tensor ranges know which token belongs to which image. For each group of layers that share an
input, every scheme is tried, and the cheapest that is precise enough is used. Then GPTQ chooses the
integers, and the biases take up the mean error that remains. Only calibration lives here: no ONNX.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from build import images
from build.artifacts import (
    Artifact,
    Geometry,
    Inputs,
    Plan,
    Projection,
    QuantisedLinear,
    Scheme,
    Table,
    read_geometry,
    write_plan,
)
from build.gptq import factorise, gptq, hessian
from build.reference import VisionEncoderWrapper, load
from build.views import views
from sidecar.job import PixelValues, Rgb

PICTURES = 16  # that are taken of a folder
SEARCH_TOKENS = 512  # on which the schemes are compared
CALIBRATION_TOKENS = 12288  # that the Hessian is made of
CHUNK = 8  # images that go through the patch embedding, or through attention, at once
PACKED = "packed"  # the name of `attend` for Transformers


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


Importance = Mapping[str, Tensor]
NONE: Importance = {}


@dataclass(frozen=True)
class Group:
    """Linear layers that share an input."""

    layers: tuple[str, ...]
    folded_into: str | None  # their smoothing: a LayerNorm or a linear layer; None: behind a GELU
    residual: str | None = None  # a module whose input is the residual stream that they add to


GROUPS = (
    Group(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "layer_norm1"),
    Group(("self_attn.out_proj",), "self_attn.v_proj", residual="layer_norm1"),
    Group(("mlp.fc1",), "layer_norm2"),
    Group(("mlp.fc2",), None, residual="layer_norm2"),
)


Sizes = tuple[tuple[int, int], ...]  # by batch: how many images, and the tokens of each


@dataclass(frozen=True)
class Packed:
    """The tokens of all images, [1, tokens, channels], and where one image ends."""

    tokens: Tensor
    sizes: Sizes

    def unpack(self) -> list[Tensor]:
        """The batches, [n, tokens, channels]."""
        parts = self.tokens[0].split([count * tokens for count, tokens in self.sizes])
        return [part.unflatten(0, size) for part, size in zip(parts, self.sizes, strict=True)]


@dataclass
class Simulated:
    """A quantised linear layer, computed in float as the 8-bit graph computes it."""

    integers: Tensor  # [in, out]
    scale: Tensor  # [out]
    smoothing: Tensor  # [in]
    scheme: Scheme
    error: float = 0.0  # relative squared error before GPTQ
    bias: Tensor = field(default_factory=lambda: torch.zeros(1))  # [out]

    @property
    def weight(self) -> Tensor:
        """What the smoothed input is multiplied with: [in, out]."""
        return self.integers * self.scale

    def __call__(self, x: Tensor) -> Tensor:
        """[n, tokens, in] to [n, tokens, out]."""
        return self.round(x) @ self.weight + self.bias

    def input(self, x: Packed) -> Tensor:
        """The input, smoothed, and rounded to the values that 8 bits can hold: [1, tokens, in]."""
        return pack([self.round(batch) for batch in x.unpack()]).tokens

    def round(self, x: Tensor) -> Tensor:
        """The same for one batch [n, tokens, in]."""
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
class Site:
    """A group of linear layers in its place, and its input before and after quantisation."""

    modules: tuple[Any, ...]  # of nn.Linear
    exact: Tensor  # the input in float, [1, tokens, in]
    actual: Packed  # the input after the layers quantised so far
    gap: Tensor | None  # [1, tokens, out], what the residual stream lost so far, if they add to it
    importance: tuple[Tensor, ...] = ()  # by layer, [out]

    @property
    def weight(self) -> Tensor:
        """Of all layers, side by side: [in, out]."""
        return torch.cat([module.weight.T for module in self.modules], dim=1)

    def split(self, whole: Simulated, lost: Tensor) -> list[Simulated]:
        """The layers one by one; their biases take up the mean error `lost` [out]."""
        layers = []
        start = 0
        for module in self.modules:
            part = slice(start, start := start + module.weight.shape[0])
            scale, bias = whole.scale[part], module.bias + lost[part].float()
            integers = whole.integers[:, part]
            layers.append(
                Simulated(integers, scale, whole.smoothing, whole.scheme, whole.error, bias)
            )
        return layers


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
    views: int = 64
    seed: int = 1  # of the views
    folder: Folder | None = None
    projection: Projection = "linear"  # of the encoder; GPTQ alone needs the tower only

    reads: ClassVar = (Artifact.CHECKPOINT,)
    writes: ClassVar = Artifact.PLAN

    def __call__(self, inputs: Inputs, out: Path) -> None:
        checkpoint = inputs[Artifact.CHECKPOINT]
        batches = [torch.from_numpy(pixels) for pixels in self._batches(read_geometry(checkpoint))]
        importance = self.importance(checkpoint, batches[-1])
        encoder = load(checkpoint, self.projection, attention=PACKED, stored_layers=True)
        tower = encoder.tower
        linears: list[QuantisedLinear] = []
        folded: dict[str, Any] = {}
        with torch.inference_mode():
            exact = actual = pack([_embed(tower, pixels) for pixels in batches])
            for number, stored in enumerate(inputs.progress(tower.encoder.layers, "layers")):
                layer = copy.deepcopy(stored).float()
                name = f"tower.encoder.layers.{number}"
                exact, actual, quantised = self.layer(layer, name, exact, actual, importance)
                lowered, parameters = fold(layer, quantised, name)
                linears += lowered
                folded |= parameters
            tables = self.tables(encoder, exact, actual, importance)
        write_plan(Plan(tuple(linears), folded, tables), out)

    def tables(
        self, _encoder: VisionEncoderWrapper, _exact: Packed, _actual: Packed, _: Importance
    ) -> dict[str, Table]:
        """What stands for matrices outside the encoder layers; here the lowering rounds them.

        `exact` and `actual` are the last layer's output, in float and after quantisation.
        """
        return {}

    def importance(self, _checkpoint: Path, _pixels: Tensor) -> Importance:
        """By linear layer, how much each output counts [out]; here GPTQ does not ask."""
        return {}

    def layer(
        self,
        layer: nn.Module,
        prefix: str,
        exact: Packed,
        actual: Packed,
        importance: Importance = NONE,
    ) -> tuple[Packed, Packed, dict[str, Simulated]]:
        """Quantise one encoder layer, whose name is `prefix`.

        `exact` is its input in float, `actual` its input after the layers quantised so far. Both
        outputs, and the quantised linear layers by name.
        """
        twin = copy.deepcopy(layer)
        inputs = [group.layers[0] for group in GROUPS]
        streams = sorted({group.residual for group in GROUPS if group.residual})
        with recorded(layer, inputs + streams) as before:
            exact = run(layer, exact)

        def quantise(group: Group, x: Packed) -> dict[str, Simulated]:
            gap = before[group.residual] - now[group.residual] if group.residual else None
            site = Site(
                tuple(layer.get_submodule(name) for name in group.layers),
                before.pop(group.layers[0]),
                x,
                gap,
                tuple(importance[f"{prefix}.{name}"] for name in group.layers if importance),
            )
            return dict(zip(group.layers, self.quantise(site), strict=True))

        with recorded(twin, streams) as now, replaced(twin, actual.sizes, quantise) as quantised:
            actual = run(twin, actual)
        return exact, actual, quantised

    def quantise(self, site: Site) -> list[Simulated]:
        """A group's layers in 8 bits."""
        scheme, error = self.choose(site.actual, site.weight)
        s = smoothing(site.actual.tokens, site.weight, scheme.alpha)
        smoothed = site.weight * s[:, None]
        _, scale = symmetric(smoothed)
        x = Simulated(smoothed, scale, s, scheme).input(site.actual)
        sample = sample_tokens(x, CALIBRATION_TOKENS)
        integers = gptq(smoothed / scale, factorise(hessian(sample), self.percdamp))
        lost = mean(site.exact) @ site.weight.double() - mean(x) @ (integers * scale).double()
        return site.split(Simulated(integers, scale, s, scheme, error), lost)

    def choose(self, actual: Packed, weight: Tensor) -> tuple[Scheme, float]:
        """The scheme for a group with input `actual` and `weight` [in, out], and its error."""
        smoothings = {alpha: smoothing(actual.tokens, weight, alpha) for alpha in self.alphas}
        return self.compare(actual, weight, smoothings)

    def compare(
        self, actual: Packed, weight: Tensor, smoothings: Mapping[float | None, Tensor]
    ) -> tuple[Scheme, float]:
        """Of schemes with these smoothings [in], by alpha, the one that `Calibrate` describes.

        With it the squared error that it makes, relative to the squared output.
        """
        batches = actual.unpack()
        samples = [sample_tokens(batch, SEARCH_TOKENS // len(batches)) for batch in batches]
        # A per-tensor range is that of all tokens: each channel's extremes join as two tokens.
        whole = [
            torch.cat([sample, batch.amin(dim=1, keepdim=True), batch.amax(dim=1, keepdim=True)], 1)
            for sample, batch in zip(samples, batches, strict=True)
        ]
        exact = [sample @ weight for sample in samples]
        total = sum(y.square().sum() for y in exact)
        best: dict[str, tuple[float, Scheme]] = {}
        for alpha, s in smoothings.items():
            integers, scale = symmetric(weight * s[:, None])
            for scheme in (Scheme("per_tensor", alpha), Scheme("per_token", alpha)):
                kind = scheme.activations
                layer = Simulated(integers, scale, s, scheme)
                squares = sum(
                    (layer(seen)[:, : y.shape[1]] - y).square().sum()
                    for seen, y in zip(
                        whole if kind == "per_tensor" else samples, exact, strict=True
                    )
                )
                error = float(squares / max(float(total), 1e-30))
                if kind not in best or error < best[kind][0]:
                    best[kind] = error, scheme
        per_tensor, per_token = best["per_tensor"], best["per_token"]
        prefer_tensor = per_tensor[0] <= self.per_token_gain * per_token[0]
        error, scheme = per_tensor if prefer_tensor else per_token
        if error > self.max_error:
            return Scheme("float", None), error
        return scheme, error

    def _batches(self, shape: Geometry) -> list[PixelValues]:
        """Batches [n, 3, side, side]: pictures and their centers, enlarged; then small views.

        Smooth pictures suffer most from quantisation: all their tokens err in one direction. At
        half the native size, four times as many fit into the time; views are smaller still.
        """
        if self.folder:
            pictures = list(images.folder(self.folder.path).values())
            sources = pictures = pictures[:: -(-len(pictures) // PICTURES)]
        else:
            pictures = [images.bundled(name) for name in images.CALIBRATION]
            sources = pictures + [images.bundled(name) for name in images.VIEWS]
        side = shape.resolutions[(len(shape.resolutions) - 1) // 2]
        how = shape.normalisation
        whole = [part for rgb in pictures for part in (rgb, center_crop(rgb))]
        small = views(sources, self.views, self.seed)
        return [
            np.concatenate([images.pixel_values(rgb, size, size, how) for rgb in batch])
            for batch, size in ((whole, side), (small, shape.step))
            if batch
        ]


def pack(batches: Sequence[Tensor]) -> Packed:
    """Batches [n, tokens, channels] as one sequence."""
    sizes: Sizes = tuple((batch.shape[0], batch.shape[1]) for batch in batches)
    return Packed(torch.cat([batch.flatten(0, 1) for batch in batches])[None], sizes)


def run(layer: nn.Module, hidden: Packed) -> Packed:
    """Transformers' own encoder layer, whose attention must be `attend`."""
    # The mask is passed on to `attend` as it is: there it says where an image ends.
    output = layer(hidden.tokens, torch.tensor(hidden.sizes))
    return Packed(output if isinstance(output, Tensor) else output[0], hidden.sizes)


def attend(
    _module: nn.Module,
    query: Tensor,  # [1, heads, tokens, size]
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,  # [batches, 2]: how many images, and the tokens of each
    scaling: float,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention within each image of a packed sequence: [1, tokens, heads, size].

    Without a mask, that of a batch of images.
    """
    if attention_mask is None:
        y = nn.functional.scaled_dot_product_attention(query, key, value, scale=scaling)
        return y.transpose(1, 2), None
    batches = []
    start = 0
    for count, tokens in attention_mask.tolist():
        part = slice(start, start := start + count * tokens)
        q, k, v = (
            x[0, :, part].unflatten(1, (count, tokens)).transpose(0, 1) for x in (query, key, value)
        )
        y = nn.functional.scaled_dot_product_attention(q, k, v, scale=scaling)
        batches.append(y.transpose(1, 2).flatten(0, 1))
    return torch.cat(batches)[None], None


AttentionInterface.register(PACKED, attend)


def _embed(tower: Any, pixels: Tensor) -> Tensor:
    """[n, 3, side, side] to [n, tokens, hidden], a few images at a time."""
    parts = [tower.embeddings(part, interpolate_pos_encoding=True) for part in pixels.split(CHUNK)]
    return torch.cat(parts)


@contextmanager
def recorded(layer: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """While inside: the inputs of the modules of these names, once `layer` ran."""
    inputs: dict[str, Tensor] = {}

    def record(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, arguments: inputs.update({name: arguments[0]})

    handles = [layer.get_submodule(name).register_forward_pre_hook(record(name)) for name in names]
    try:
        yield inputs
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def replaced(
    layer: nn.Module,
    sizes: Sizes,
    quantise: Callable[[Group, Packed], dict[str, Simulated]],
) -> Iterator[dict[str, Simulated]]:
    """While inside, `layer` computes as if quantised; the quantised linear layers by name.

    Before a group runs, `quantise` gets the group and its input. Its weights then replace those of
    `layer`, and the layers of the group get the input that 8 bits leave.
    """
    quantised: dict[str, Simulated] = {}
    latest: dict[str, Tensor] = {}  # of the group that runs, the input in 8 bits

    def replace(group: Group) -> Callable[..., tuple[Tensor]]:
        def hook(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor]:
            if group.layers[0] not in quantised:
                x = Packed(arguments[0], sizes)
                quantised.update(quantise(group, x))
                for name in group.layers:
                    linear, simulated = layer.get_submodule(name), quantised[name]
                    linear.get_parameter("weight").copy_(simulated.weight.T)
                    linear.get_parameter("bias").copy_(simulated.bias)
                latest["x"] = quantised[group.layers[0]].input(x)
            return (latest["x"],)

        return hook

    handles = [
        layer.get_submodule(name).register_forward_pre_hook(replace(group))
        for group in GROUPS
        for name in group.layers
    ]
    try:
        yield quantised
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
            error=float(f"{module.error:.3g}"),
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
