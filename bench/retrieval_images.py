"""The images of `bench.retrieval`: views of photographs and renderings of ECG signals, drawn here.

A *group* is one region of one photograph, or one stretch of one signal; its images are views of it.
An image is similar to the others of its group. Everything is drawn from fixed seeds.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps

from build import images as build_images

Picture = Image.Image
Draws = np.random.Generator

PHOTOGRAPHS = (
    *("chelsea.png", "motorcycle_left.png", "motorcycle_right.png", "cell.png", "brick.png"),
    *("ihc.png", "text.png", "astronaut.png", "camera.png", "clock_motion.png", "coffee.png"),
    *("coins.png", "grass.png", "gravel.png", "hubble_deep_field.jpg", "microaneurysms.png"),
    *("moon.png", "page.png", "retina.jpg", "rocket.jpg", "aero.npz", "ascent.npz", "horse.png"),
)
REGIONS = 4  # of a photograph
SIDE = 448
PAGE = (720, 520)
SEGMENTS = 80


@dataclass(frozen=True)
class View:
    """`box` is the part of its group's plain view that a crop shows, else None."""

    name: str
    kind: str  # photo or ecg
    source: str  # the photograph or the signal
    group: str
    rgb: NDArray[np.uint8]
    box: tuple[float, float, float, float] | None = None  # top, left, bottom, right


def views() -> Iterator[View]:
    """All of them, always the same and in the same order."""
    yield from _photographs()
    yield from _pages()


def _photographs() -> Iterator[View]:
    for number, name in enumerate(PHOTOGRAPHS):
        draws = np.random.default_rng([1, number])
        whole = Image.fromarray(build_images.bundled(name)).convert("RGB")
        for region in range(REGIONS):
            group = f"{name}-{region}"
            window = _window(whole, region, draws)
            for kind, draw in PHOTO_VIEWS.items():
                view, box = draw(whole, window, draws)
                yield View(
                    f"{group}-{kind}", "photo", name, group, np.asarray(view.convert("RGB")), box
                )


def _window(whole: Picture, region: int, draws: Draws) -> tuple[float, float, float]:
    """Left, top and side of a square in a quarter of the photograph: none overlaps another."""
    row, column = divmod(region, 2)
    width, height = whole.width / 2, whole.height / 2
    side = min(width, height) * draws.uniform(0.85, 1)
    left = column * width + draws.uniform(0, width - side)
    top = row * height + draws.uniform(0, height - side)
    return left, top, side


def _cut(whole: Picture, left: float, top: float, side: float) -> Picture:
    box = (left, top, left + side, top + side)
    return whole.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=box)


Window = tuple[float, float, float]
Box = tuple[float, float, float, float]
Drawn = tuple[Picture, Box | None]


def _plain(whole: Picture, window: Window, _: Draws) -> Drawn:
    return _cut(whole, *window), None


def _photometric(whole: Picture, window: Window, draws: Draws) -> Drawn:
    view = _cut(whole, *window)
    view = ImageEnhance.Brightness(view).enhance(draws.uniform(0.7, 1.3))
    view = ImageEnhance.Contrast(view).enhance(draws.uniform(0.7, 1.3))
    view = ImageEnhance.Color(view).enhance(draws.uniform(0.4, 1.5))
    return _jpeg(view, 60), None


def _rotated(whole: Picture, window: Window, draws: Draws) -> Drawn:
    degrees = draws.uniform(8, 25) * draws.choice([-1, 1])
    view = _cut(whole, *window).rotate(degrees, Image.Resampling.BICUBIC)
    edge = SIDE * 0.14
    box = (edge, edge, SIDE - edge, SIDE - edge)
    return view.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=box), None


def _crop(whole: Picture, window: Window, draws: Draws) -> Drawn:
    left, top, side = window
    part = draws.uniform(0.5, 0.62)
    x, y = draws.uniform(0, 1 - part), draws.uniform(0, 1 - part)
    view = _cut(whole, left + x * side, top + y * side, part * side)
    return view, (y, x, y + part, x + part)


def _wider(whole: Picture, window: Window, draws: Draws) -> Drawn:
    left, top, side = window
    wide = min(side * draws.uniform(1.35, 1.6), *whole.size)
    x = min(max(left - (wide - side) / 2, 0), whole.width - wide)
    y = min(max(top - (wide - side) / 2, 0), whole.height - wide)
    return _cut(whole, x, y, wide), None


def _mirrored(whole: Picture, window: Window, _: Draws) -> Drawn:
    return ImageOps.mirror(_cut(whole, *window)), None


def _degraded(whole: Picture, window: Window, draws: Draws) -> Drawn:
    view = _cut(whole, *window).resize((SIDE // 4, SIDE // 4), Image.Resampling.BOX)
    view = view.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    view = view.filter(ImageFilter.GaussianBlur(1.5))
    if draws.random() < 0.5:
        view = ImageOps.grayscale(view).convert("RGB")
    return _jpeg(_noisy(view, draws, 8), 35), None


PHOTO_VIEWS: dict[str, Callable[[Picture, Window, Draws], Drawn]] = {
    "plain": _plain,
    "photometric": _photometric,
    "rotated": _rotated,
    "crop": _crop,
    "wider": _wider,
    "mirrored": _mirrored,
    "degraded": _degraded,
}


def _pages() -> Iterator[View]:
    for number in range(SEGMENTS):
        draws = np.random.default_rng([2, number])
        rhythm = RHYTHMS[number % len(RHYTHMS)]
        signal = beats(rhythm, draws)
        group = f"ecg-{number}-{rhythm}"
        for kind in ("plain", "paper", "offset", "scan", "copy", "phone", "part"):
            page, box = ecg_page(signal, kind, draws)
            yield View(f"{group}-{kind}", "ecg", group, group, np.asarray(page), box)


RHYTHMS = (
    *("normal", "fast", "slow", "irregular", "bigeminy", "extra"),
    *("pauses", "st_up", "st_down", "t_inverted", "wide"),
)
HZ = 250
SECONDS = 24
# Per wave: seconds from the R peak, width in seconds, millivolts.
WAVES = ((-0.17, 0.022, 0.13), (-0.03, 0.009, -0.1), (0, 0.011, 1.1), (0.03, 0.01, -0.22))


def beats(rhythm: str, draws: Draws) -> NDArray[np.float64]:
    """A simulated lead in millivolts: each wave of a beat is a Gaussian."""
    rate = {"fast": draws.uniform(105, 140), "slow": draws.uniform(42, 55)}.get(
        rhythm, draws.uniform(60, 95)
    )
    amplitude, wide = draws.uniform(0.6, 1.3), 2.4 if rhythm == "wide" else draws.uniform(0.9, 1.2)
    t_wave = {"t_inverted": -0.3}.get(rhythm, draws.uniform(0.15, 0.4))
    shift = {"st_up": 0.25, "st_down": -0.2}.get(rhythm, 0.0)
    time = np.arange(HZ * SECONDS) / HZ
    signal = 0.06 * np.sin(2 * np.pi * draws.uniform(0.1, 0.3) * time + draws.uniform(0, 6))
    at, beat = 0.4, 0
    while at < SECONDS:
        early = (rhythm == "bigeminy" and beat % 2 == 1) or (
            rhythm == "extra" and draws.random() < 0.18
        )
        spread = 3.0 if early else wide
        for centre, width, height in WAVES:
            if early and centre < -0.1:
                continue  # no P wave
            signal += amplitude * height * _bump(time - at - centre * spread, width * spread)
        signal += amplitude * (-t_wave if early else t_wave) * _bump(time - at - 0.28, 0.05)
        signal += shift * _bump(time - at - 0.13, 0.045)
        gap = 60 / rate * (1 + draws.normal() * 0.02)
        if rhythm == "irregular":
            gap *= draws.uniform(0.6, 1.5)
        if early:
            gap *= 1.3
        elif rhythm == "bigeminy" or (rhythm == "extra" and draws.random() < 0.1):
            gap *= 0.72
        if rhythm == "pauses" and draws.random() < 0.15:
            gap *= 2.1
        at, beat = at + gap, beat + 1
    return np.asarray(signal + draws.normal(size=len(time)) * 0.012)


def _bump(x: NDArray[np.float64], width: float) -> NDArray[np.float64]:
    return np.asarray(np.exp(-0.5 * (x / width) ** 2))


def ecg_page(signal: NDArray[np.float64], kind: str, draws: Draws) -> Drawn:
    paper, line, ink = ((253, 248, 244), (240, 190, 188), (26, 26, 44))
    width, begin = 2, 0.0
    if kind == "paper":
        hue = draws.integers(0, 4)
        paper = ((250, 252, 246), (245, 248, 255), (255, 253, 235), (250, 250, 250))[hue]
        line = ((180, 214, 180), (180, 196, 232), (222, 200, 140), (205, 205, 205))[hue]
        ink, width = ((10, 10, 90), (0, 0, 0), (60, 30, 20))[draws.integers(0, 3)], 3
    if kind == "offset":
        begin = draws.uniform(0.05, 0.6)
    page = _drawn(signal[int(begin * HZ) :], paper, line, ink, width, draws)
    box = None
    if kind == "scan":
        page = page.rotate(
            draws.uniform(-3, 3), Image.Resampling.BICUBIC, fillcolor=(235, 235, 235)
        )
        page = _jpeg(_noisy(page, draws, 6), 40)
    if kind == "copy":
        grey = ImageOps.grayscale(page).point(lambda value: 0 if value < 110 else 255)
        page = _noisy(grey.convert("RGB"), draws, 5)
    if kind == "phone":
        w, h = page.size
        corners = [draws.uniform(0, 0.09) for _ in range(8)]
        quad = (
            *(-corners[0] * w, -corners[1] * h, -corners[2] * w, h + corners[3] * h),
            *(w + corners[4] * w, h + corners[5] * h, w + corners[6] * w, -corners[7] * h),
        )
        page = page.transform(
            page.size, Image.Transform.QUAD, quad, Image.Resampling.BICUBIC, fillcolor=(92, 74, 60)
        )
        shade = np.linspace(draws.uniform(0.5, 0.75), 1.05, w)[None, :, None]
        page = Image.fromarray((np.asarray(page) * shade).clip(0, 255).astype(np.uint8))
        page = _jpeg(page.filter(ImageFilter.GaussianBlur(0.8)), 55)
    if kind == "part":
        x, y = draws.uniform(0, 0.28), draws.uniform(0, 0.3)
        box = (y, x, y + 0.7, x + 0.72)
        w, h = page.size
        page = page.crop((int(x * w), int(y * h), int((x + 0.72) * w), int((y + 0.7) * h)))
    return page, box


def _drawn(
    signal: NDArray[np.float64],
    paper: tuple[int, ...],
    line: tuple[int, ...],
    ink: tuple[int, ...],
    width: int,
    draws: Draws,
) -> Picture:
    page = Image.new("RGB", PAGE, paper)
    pen = ImageDraw.Draw(page)
    for x in range(20, PAGE[0] - 19, 5):
        pen.line((x, 40, x, PAGE[1] - 20), line, 2 if x % 25 == 20 else 1)
    for y in range(40, PAGE[1] - 19, 5):
        pen.line((20, y, PAGE[0] - 20, y), line, 2 if y % 25 == 15 else 1)
    pen.text((22, 12), f"No. {draws.integers(10**6, 10**7)}", ink)
    rows, shown = 4, (PAGE[0] - 40) // 5 * HZ // 25
    for row in range(rows):
        part = signal[row * shown : (row + 1) * shown]
        zero = 40 + (PAGE[1] - 60) * (row + 0.62) / rows
        points = [(20 + i * 125 / HZ, zero - mv * 50) for i, mv in enumerate(part.tolist())]
        pen.line(points, ink, width, joint="curve")
    return page


def _jpeg(view: Picture, quality: int) -> Picture:
    file = BytesIO()
    view.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def _noisy(view: Picture, draws: Draws, sigma: float) -> Picture:
    pixels = np.asarray(view, np.float32)
    return Image.fromarray(
        (pixels + draws.normal(size=pixels.shape) * sigma).clip(0, 255).astype(np.uint8)
    )
