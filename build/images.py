"""Real photographs, scans and pages in sets, and how they are read. VALIDATION shares none.

They come with packages that the build needs anyway, so that nothing is downloaded. scikit-image
and PyWavelets name the origin and the licence of each.
"""

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from sidecar import images
from sidecar.errors import SidecarError
from sidecar.job import PixelValues, Rgb
from sidecar.manifest import Normalisation

LARGEST = 100_000_000  # pixels

DEMO_PROJECTOR = ("chelsea.png", "motorcycle_left.png", "cell.png")
# Parts of these and of CALIBRATION become calibration views.
VIEWS = ("cell.png", "color.png", "phantom.png")
CALIBRATION = ("motorcycle_right.png", "brick.png", "ihc.png", "text.png")
VALIDATION = (
    *("astronaut.png", "camera.png", "clock_motion.png", "coffee.png", "coins.png", "grass.png"),
    *("gravel.png", "hubble_deep_field.jpg", "microaneurysms.png", "moon.png", "page.png"),
    *("retina.jpg", "rocket.jpg", "aero.npz", "ascent.npz", "ecg.png"),
)
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def bundled(name: str) -> Rgb:
    """One of the images named above, as RGB of shape [height, width, 3]."""
    if name == "ecg.png":
        return read(Path(__file__).parents[1] / "examples" / name)
    if name.endswith(".npz"):
        with np.load(_package("pywt") / "data" / name) as arrays:
            grey = arrays["data"].astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    return read(_package("skimage") / "data" / name)


def folder(path: Path) -> dict[str, Rgb]:
    """Every image in a directory, by file name. Raises OSError."""
    return {file.name: read(file) for file in files(path)}


def read(path: Path) -> Rgb:
    """Decode as the sidecar does. Raises OSError."""
    try:
        return images.decode(path.read_bytes(), LARGEST)
    except SidecarError as error:
        raise OSError(f"{path.name}: {error}") from error


def pixel_values(rgb: Rgb, height: int, width: int, how: Normalisation) -> PixelValues:
    """[h, w, 3] to [1, 3, height, width], as the sidecar does."""
    return images.to_pixel_values(rgb, height, width, how)


def files(path: Path) -> list[Path]:
    if not path.is_dir():
        raise NotADirectoryError(f"expected a directory of images, found none at {path}.")
    pictures = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
    if not pictures:
        raise FileNotFoundError(f"expected PNG, JPEG or WebP files in {path}, found none.")
    return pictures


def _package(name: str) -> Path:
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise FileNotFoundError(f"the package {name} is missing. Run `make install` first.")
    return Path(spec.origin).parent
