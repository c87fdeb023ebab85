"""Calibration views: crops and recolourings of given pictures, and procedural pictures.

Quantisation hides its error where no view looks, so many cheap and varied views beat few good ones.
All randomness comes from a seed. Only pictures are made here, as RGB [VIEW, VIEW, 3] or larger.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from sidecar.job import Rgb

VIEW = 256  # pixels, the side of a procedural picture
Floats = NDArray[np.float64]


def views(pictures: Sequence[Rgb], count: int, seed: int) -> list[Rgb]:
    """`count` views, three eighths of them parts of `pictures`, the others procedural."""
    random = np.random.default_rng(seed)

    def part() -> Rgb:
        return recolour(crop(pictures[int(random.integers(len(pictures)))], random), random)

    def made(paint: Callable[[Generator], Rgb]) -> Callable[[], Rgb]:
        return lambda: paint(random)

    kinds = (part, part, part, *map(made, (textured, leaves, leaves, drawing, smooth)))
    return [kinds[number % len(kinds)]() for number in range(count)]


def crop(rgb: Rgb, random: Generator) -> Rgb:
    """A part of a picture, a tenth of its sides or more, turned and mirrored."""
    height, width, _ = rgb.shape
    share = np.exp(random.uniform(np.log(0.1), 0))
    aspect = np.exp(random.uniform(-0.3, 0.3))
    down = max(8, min(height, int(height * share * aspect)))
    across = max(8, min(width, int(width * share / aspect)))
    down, across = min(down, height), min(across, width)
    top, left = random.integers(height - down + 1), random.integers(width - across + 1)
    part: Rgb = np.rot90(rgb[top : top + down, left : left + across], int(random.integers(4)))
    return np.ascontiguousarray(part[:, ::-1] if random.random() < 0.5 else part)


def recolour(rgb: Rgb, random: Generator) -> Rgb:
    """Grey, inverted, other channels, another gamma, tinted, noisy: each with some probability."""
    x = rgb.astype(np.float64) / 255
    if random.random() < 0.25:
        x = np.repeat(x.mean(axis=2, keepdims=True), 3, axis=2)
    if random.random() < 0.25:
        x = 1 - x
    if random.random() < 0.4:
        x = x[:, :, random.permutation(3)]
    if random.random() < 0.5:
        x = x ** np.exp(random.uniform(-0.7, 0.7))
    if random.random() < 0.5:
        x = x * random.uniform(0.4, 1.1, 3) + random.uniform(-0.1, 0.25)
    if random.random() < 0.15:
        x = x + random.normal(size=x.shape) * random.uniform(0, 0.1)
    return _rgb(255 * x)


def noise(random: Generator, channels: int, power: float) -> Floats:
    """[VIEW, VIEW, channels] of mean 0 and deviation 1, with a spectrum of 1 / f ** power."""
    stretch = random.uniform(1, 6) if random.random() < 0.3 else 1.0
    frequencies = np.fft.fftfreq(VIEW)
    f = np.hypot(frequencies[:, None] * stretch, frequencies[None])
    f[0, 0] = 1
    white = np.fft.fft2(random.normal(size=(channels, VIEW, VIEW)))
    z = np.fft.ifft2(white * f**-power).real
    z = z - z.mean(axis=(1, 2), keepdims=True)
    return np.asarray(np.moveaxis(z / z.std(axis=(1, 2), keepdims=True), 0, 2))


def textured(random: Generator) -> Rgb:
    """Coloured noise, from sand to clouds."""
    return _rgb(_coloured(noise(random, 3, random.uniform(0.6, 2.6)), random))


def smooth(random: Generator) -> Rgb:
    """Slow changes of colour, some grainy, some in a round field as a microscope shows them."""
    x = _coloured(noise(random, 3, random.uniform(2.5, 4)), random)
    x = x + random.normal(size=x.shape) * random.choice([0, 1, 4])
    if random.random() < 0.4:
        down, across = np.mgrid[-1 : 1 : VIEW * 1j, -1 : 1 : VIEW * 1j]
        x = x * (np.hypot(down, across) < random.uniform(0.5, 1))[:, :, None]
    return _rgb(x)


def leaves(random: Generator) -> Rgb:
    """Dead leaves: shapes of all sizes that hide each other, as things in a photograph do."""
    palette = random.integers(0, 256, (random.integers(3, 12), 3))
    image = Image.new("RGB", (VIEW, VIEW), _ink(random.integers(0, 256, 3)))
    draw = ImageDraw.Draw(image)
    for _ in range(int(np.exp(random.uniform(2, 6.5)))):
        r = min(VIEW, 0.02 * VIEW * random.pareto(1.5) + 2)
        x, y = random.uniform(0, VIEW, 2)
        colour = palette[random.integers(len(palette))] + random.normal(size=3) * 15
        fill = _ink(np.clip(colour, 0, 255))
        match random.integers(4):
            case 0:
                tall = r * random.uniform(0.3, 1)
                draw.ellipse([x - r, y - tall, x + r, y + tall], fill=fill)
            case 1:
                draw.rectangle([x - r, y - 0.7 * r, x + r, y + 0.7 * r], fill=fill)
            case 2:
                turns = np.sort(random.uniform(0, 2 * np.pi, 5))
                corners = [(float(x + r * np.cos(t)), float(y + r * np.sin(t))) for t in turns]
                draw.polygon(corners, fill=fill)
            case _:
                end = random.uniform(0, VIEW, 2)
                draw.line([x, y, *end], fill=fill, width=int(random.integers(1, 8)))
    pixels = np.asarray(image).astype(np.float64)
    if random.random() < 0.7:
        pixels = pixels + noise(random, 1, random.uniform(0.6, 2.6)) * random.uniform(0, 25)
    if random.random() < 0.5:
        pixels = pixels * (0.75 + 0.25 * np.tanh(noise(random, 1, 2.2)))  # shade
    blurred = Image.fromarray(_rgb(pixels)).filter(ImageFilter.GaussianBlur(random.uniform(0, 2)))
    return np.asarray(blurred)


def drawing(random: Generator) -> Rgb:
    """Ink on paper, or light on dark: text, graph paper with traces, dots, or boards."""
    dark = random.random() < 0.3
    paper = random.integers(0, 40, 3) if dark else random.integers(215, 256, 3)
    inks = random.integers(150, 256, (3, 3)) if dark else random.integers(0, 130, (3, 3))
    image = Image.new("RGB", (VIEW, VIEW), _ink(paper))
    draw = ImageDraw.Draw(image)
    match random.integers(4):
        case 0:
            _text(draw, random, _ink(inks[0]))
        case 1:
            _traces(draw, random, _ink(0.75 * paper + 0.25 * inks[1]), _ink(inks[2]))
        case 2:
            for _ in range(int(np.exp(random.uniform(2, 6)))):
                x, y = random.uniform(0, VIEW, 2)
                r = random.exponential(2) + 0.5
                draw.ellipse([x - r, y - r, x + r, y + r], fill=_ink(inks[random.integers(3)]))
            image = image.filter(ImageFilter.GaussianBlur(random.uniform(0, 1.5)))
        case _:
            wide, tall = (int(side) for side in random.integers(4, 60, 2))
            rows = range(0, VIEW, 2 * tall) if random.random() < 0.5 else (0,)
            height = tall if len(rows) > 1 else VIEW
            for x in range(0, VIEW, 2 * wide):
                for y in rows:
                    draw.rectangle([x, y, x + wide, y + height], fill=_ink(inks[0]))
            image = image.rotate(random.uniform(0, 90))
    return np.asarray(image)


def _text(draw: ImageDraw.ImageDraw, random: Generator, ink: tuple[int, int, int]) -> None:
    size = int(random.integers(8, 40))
    font = ImageFont.load_default(size)
    step = int(size * random.uniform(1.1, 2))
    for y in range(int(random.integers(size)), VIEW, step):
        line = "".join(map(chr, random.choice([32, *range(40, 127)], 60)))
        draw.text((int(random.integers(20)), y), line, fill=ink, font=font)


def _traces(
    draw: ImageDraw.ImageDraw,
    random: Generator,
    grid: tuple[int, int, int],
    ink: tuple[int, int, int],
) -> None:
    for k in range(0, VIEW, int(random.integers(5, 30))):
        draw.line([k, 0, k, VIEW], fill=grid)
        draw.line([0, k, VIEW, k], fill=grid)
    for _ in range(random.integers(1, 6)):
        walk = np.cumsum(random.normal(size=VIEW)) * random.uniform(0.03, 1)
        spikes = random.uniform(0, 30) * (random.random(VIEW) < 0.03)
        y = random.uniform(0, VIEW) + walk + spikes
        points = [(x, float(value)) for x, value in enumerate(y)]
        draw.line(points, fill=ink, width=int(random.integers(1, 4)))


def _coloured(z: Floats, random: Generator) -> Floats:
    """Noise [h, w, 3] as colours around one, mostly along one axis."""
    mix = random.normal(size=(3, 3)) * np.array([1, 0.4, 0.2])
    contrast = random.uniform(0.02, 0.25)
    return np.asarray(255 * (random.uniform(0.15, 0.85, 3) + (z @ mix.T) * contrast))


def _rgb(pixels: Floats) -> Rgb:
    return np.clip(pixels, 0, 255).astype(np.uint8)


def _ink(colour: NDArray[np.generic]) -> tuple[int, int, int]:
    red, green, blue = (int(value) for value in colour)
    return red, green, blue
