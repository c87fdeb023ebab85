"""The page is what its script draws from the recording; the library can be indexed as it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from sidecar.case import metadata_text

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def test_the_ecg_page_is_drawn_again_pixel_for_pixel(tmp_path: Path) -> None:
    again = tmp_path / "ecg.png"
    subprocess.run([sys.executable, str(EXAMPLES / "draw_ecg.py"), str(again)], check=True)
    with Image.open(EXAMPLES / "ecg.png") as kept, Image.open(again) as drawn:
        assert kept.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(kept), np.asarray(drawn))


def test_the_library_is_pages_with_metadata_that_a_case_may_have(tmp_path: Path) -> None:
    script = [sys.executable, str(EXAMPLES / "draw_library.py"), str(tmp_path), "4"]
    subprocess.run(script, check=True, env={**os.environ, "PYTHONPATH": str(EXAMPLES.parent)})
    cases = [json.loads(line) for line in (tmp_path / "cases.jsonl").read_text().splitlines()]
    assert len(cases) == 4
    for case in cases:
        with Image.open(tmp_path / case.pop("id")) as page:
            assert page.mode == "RGB"
        assert case["thumbnail"].startswith("data:image/webp;base64,")
        metadata_text(case)  # or it raises
