"""The example page is what its script draws from the recording beside it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def test_the_ecg_page_is_drawn_again_pixel_for_pixel(tmp_path: Path) -> None:
    again = tmp_path / "ecg.png"
    subprocess.run([sys.executable, str(EXAMPLES / "draw_ecg.py"), str(again)], check=True)
    with Image.open(EXAMPLES / "ecg.png") as kept, Image.open(again) as drawn:
        assert kept.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(kept), np.asarray(drawn))
