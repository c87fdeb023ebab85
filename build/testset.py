"""The test set: images that no choice sees. They measure a finished model and decide nothing.

Scans and recordings come with pydicom and nibabel, photographs with scikit-learn and scikit-image;
those packages name the origin and the licence of each. ECG pages are drawn here, from recordings
and from simulated signals. Nothing of it is kept in this repository.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from build import images
from build.artifacts import BuildError
from sidecar.job import Rgb

PACKAGES = ("nibabel", "pydicom", "scikit-learn")  # of the extra `dev`
Signal = NDArray[np.float64]  # [leads, samples], in millivolts
RATE = 500  # samples a second of every signal here

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Unseen:
    """The images of these versions of the packages, so that a step's key says what is there."""

    versions: tuple[str, ...]

    @classmethod
    def here(cls) -> "Unseen":
        """Raises BuildError where a package is missing."""
        try:
            return cls(tuple(f"{name} {version(name)}" for name in PACKAGES))
        except PackageNotFoundError as error:
            raise BuildError(
                f"expected the package {error.name} for the test set, found none. Run "
                "`make install`, or leave out --test."
            ) from error

    def load(self) -> dict[str, Rgb]:
        """Every image, by name, as RGB [height, width, 3]."""
        return {name: make() for name, make in IMAGES.items()}


def dicom(name: str, frame: int | None = None, package: str = "pydicom/data/test_files") -> Rgb:
    """A DICOM file as it would be shown: grey values from the 1st to the 99th percentile."""
    from pydicom import dcmread
    from pydicom.pixels.processing import apply_color_lut

    dataset = dcmread(_file(f"{package}/{name}"), force=True)
    array = dataset.pixel_array if frame is None else dataset.pixel_array[frame]
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        return _byte(apply_color_lut(array, dataset))
    if array.ndim == 2:
        return window(array)
    return _byte(array)


def slice_of(name: str, axis: int, index: int) -> Rgb:
    """One slice of a volume in NIfTI format."""
    import nibabel

    volume = np.asarray(nibabel.load(_file(f"nibabel/tests/data/{name}")).dataobj)  # type: ignore[attr-defined]
    volume = volume[..., 0] if volume.ndim == 4 else volume
    return window(np.rot90(volume.take(index, axis)))


def window(values: NDArray[Any]) -> Rgb:
    """Grey values [height, width] as RGB, the 1st percentile black and the 99th white."""
    low, high = np.percentile(values, (1, 99))
    grey = np.clip((values - low) / max(high - low, 1e-9), 0, 1) * 255
    return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)


def photograph(path: str, part: tuple[float, float, float, float] = (0, 0, 1, 1)) -> Rgb:
    """A picture of a package, or a part of it: left, top, right and bottom, in fractions."""
    rgb = images.read(_file(path))
    height, width, _ = rgb.shape
    left, top, right, bottom = part
    return rgb[int(top * height) : int(bottom * height), int(left * width) : int(right * width)]


def recorded(start: float, seconds: float, leads: tuple[int, ...] = tuple(range(12))) -> Signal:
    """A part of the twelve-lead recording that comes with pydicom."""
    from pydicom import dcmread

    dataset = dcmread(_file("pydicom/data/test_files/waveform_ecg.dcm"))
    microvolts: Signal = dataset.waveform_array(0).T[list(leads)]  # at 1000 samples a second
    return microvolts[:, int(start * 1000) : int((start + seconds) * 1000) : 2] / 1000


def strip() -> Signal:
    """The lead that comes with PyWavelets, in units of which 200 are a millivolt, at 360 Hz."""
    with np.load(_file("pywt/data/ecg.npz")) as arrays:
        units = arrays["data"].astype(np.float64)
    at = np.arange(0, len(units) - 1, 360 / RATE)
    signal: Signal = np.interp(at, np.arange(len(units)), units)[None] - np.median(units)
    return signal / 200


def simulated(seed: int, rate: float, **changes: float) -> Signal:
    """One lead of ten seconds: each wave of a beat is a Gaussian (McSharry and others, 2003).

    `rate` in beats a minute; `irregular` and `noise` in fractions, `p`, `st` and `t` in millivolts,
    `wide` a factor on the QRS complex.
    """
    random = np.random.default_rng(seed)
    set_to = {"irregular": 0.02, "noise": 0.01, "p": 0.12, "st": 0.0, "t": 0.3, "wide": 1.0}
    set_to |= changes
    wide = set_to["wide"]
    waves = (  # seconds after the R wave, width in seconds, millivolts
        *((-0.17, 0.022, set_to["p"]), (-0.03 * wide, 0.01 * wide, -0.12), (0, 0.011 * wide, 1.2)),
        *((0.03 * wide, 0.01 * wide, -0.25), (0.13, 0.05, set_to["st"]), (0.29, 0.05, set_to["t"])),
    )
    time = np.arange(10 * RATE) / RATE
    signal = (
        0.05 * np.sin(time * 2 * np.pi * 0.25) + random.normal(size=len(time)) * set_to["noise"]
    )
    at = 0.3
    while at < 10:
        for delay, width, height in waves:
            signal += height * np.exp(-(((time - at - delay) / width) ** 2) / 2)
        at += 60 / rate * (1 + random.uniform(-1, 1) * set_to["irregular"])
    return np.asarray(signal[None])


def page(
    make: Callable[[], Signal],
    columns: int = 1,
    paper: Colour = (255, 246, 244),
    grid: Colour = (240, 176, 172),
    ink: Colour = (20, 20, 30),
    turn: float = 0.0,
    shade: float = 0.0,
) -> Rgb:
    """Leads on millimetre paper, five pixels a millimetre, row by row in `columns`.

    `turn` in degrees and `shade` (0 to 1, how dark one side is) make a photograph of a page of it.
    """
    leads = make()
    rows = -(-len(leads) // columns)
    width, height = 1250, max(250, rows * 140)
    drawn = Image.new("RGB", (width, height), paper)
    pen = ImageDraw.Draw(drawn)
    for step, share in ((5, 0.35), (25, 1.0)):
        line = tuple(round(p + (g - p) * share) for p, g in zip(paper, grid, strict=True))
        for x in range(0, width, step):
            pen.line((x, 0, x, height), line)
        for y in range(0, height, step):
            pen.line((0, y, width, y), line)
    across, down = width / columns, height / rows
    for number, lead in enumerate(leads):
        row, column = number % rows, number // rows
        right = column * across + np.arange(len(lead)) / RATE * 125  # 25 mm/s
        down_to = (row + 0.6) * down - lead * 50  # 10 mm/mV
        inside = right < (column + 1) * across - 4
        points = [(float(x), float(y)) for x, y in zip(right[inside], down_to[inside], strict=True)]
        pen.line(points, ink, 2, joint="curve")
    if turn:
        drawn = drawn.rotate(turn, Image.Resampling.BICUBIC, fillcolor=(70, 62, 54))
    pixels = np.asarray(drawn).astype(np.float64)
    pixels = pixels * (1 - shade * np.linspace(0, 1, width)[None, :, None])
    return _byte(pixels)


def _byte(pixels: NDArray[Any]) -> Rgb:
    """Colours of 8 or 16 bits as RGB of 8."""
    if pixels.dtype == np.uint16:
        pixels = pixels >> 8
    return np.ascontiguousarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _file(path: str) -> Path:
    package, _, rest = path.partition("/")
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise BuildError(f"the package {package} is missing. Run `make install` first.")
    return Path(spec.origin).parent / rest


NIBABEL = "nibabel/nicom/tests/data"
SKLEARN = "sklearn/datasets/images"
MONITOR: Mapping[str, Any] = {"paper": (6, 12, 10), "grid": (24, 48, 40), "ink": (90, 240, 130)}
BLUE: Mapping[str, Any] = {"paper": (250, 252, 255), "grid": (160, 190, 230), "ink": (10, 10, 90)}
COPY: Mapping[str, Any] = {"paper": (255, 255, 255), "grid": (225, 225, 225), "ink": (0, 0, 0)}

IMAGES: Mapping[str, Callable[[], Rgb]] = {
    "CT, 128 pixels": partial(dicom, "CT_small.dcm"),
    "CT, 512 pixels": partial(dicom, "693_J2KI.dcm"),
    "CT of a head": partial(dicom, "J2K_pixelrep_mismatch.dcm"),
    "MR, 64 pixels": partial(dicom, "MR_small.dcm"),
    "MR of an abdomen": partial(dicom, "examples_overlay.dcm"),
    "MR, 384 pixels": partial(dicom, "slicethickness_empty_string.dcm", package=NIBABEL),
    "MR, axial": partial(slice_of, "example4d.nii.gz", 2, 12),
    "MR, sagittal": partial(slice_of, "example4d.nii.gz", 0, 64),
    "MR, coronal": partial(slice_of, "anatomical.nii", 1, 20),
    "mask of a liver": partial(dicom, "liver_1frame.dcm"),
    "bone scan": partial(dicom, "JPEG2000.dcm"),
    "ultrasound, Doppler": partial(dicom, "examples_jpeg2k.dcm"),
    "ultrasound, palette": partial(dicom, "examples_palette.dcm"),
    "ultrasound, first frame": partial(dicom, "examples_ybr_color.dcm", 0),
    "ultrasound, sixteenth frame": partial(dicom, "examples_ybr_color.dcm", 15),
    "captured screen": partial(dicom, "image_dfl.dcm"),
    "temple": partial(photograph, f"{SKLEARN}/china.jpg"),
    "temple's roof": partial(photograph, f"{SKLEARN}/china.jpg", (0.3, 0.3, 0.7, 0.7)),
    "flower": partial(photograph, f"{SKLEARN}/flower.jpg"),
    "flower's leaves": partial(photograph, f"{SKLEARN}/flower.jpg", (0.0, 0.5, 0.4, 1.0)),
    "logo": partial(photograph, "skimage/data/logo.png"),
    "ECG, twelve leads in four columns": partial(page, partial(recorded, 0, 2.5), 4),
    "ECG, twelve leads in two columns": partial(page, partial(recorded, 2, 5), 2, **BLUE),
    "ECG, twelve leads, copied": partial(page, partial(recorded, 0, 10), **COPY),
    "ECG, photographed": partial(page, partial(recorded, 5, 2.5), 4, turn=8, shade=0.5),
    "ECG, lead II on a monitor": partial(page, partial(recorded, 0, 10, (1,)), **MONITOR),
    "ECG, chest leads": partial(page, partial(recorded, 3, 5, (6, 7, 8, 9, 10, 11)), 2),
    "ECG, one lead": partial(page, strip),
    "ECG, fast": partial(page, partial(simulated, 1, 130), **BLUE),
    "ECG, slow": partial(page, partial(simulated, 2, 45), **COPY),
    "ECG, low": partial(page, partial(simulated, 6, 80, p=0.05, t=0.1), shade=0.2),
    "ECG, fibrillation": partial(page, partial(simulated, 3, 95, irregular=0.5, p=0.0, noise=0.03)),
    "ECG, ST elevation": partial(page, partial(simulated, 4, 75, st=0.3), turn=-5, shade=0.3),
    "ECG, wide complexes": partial(page, partial(simulated, 5, 70, wide=2.4, t=-0.25), **MONITOR),
}
