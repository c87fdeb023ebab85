"""Draw a library of ECG pages to search in: recorded and simulated leads, on several papers.

    PYTHONPATH=. python examples/draw_library.py OUT [COUNT]

Writes PNG files into OUT, and `OUT/cases.jsonl`: the name and a small picture of each, as the
example app shows them. COUNT: only the first so many. The same pages each time. They are drawn for
tests and demonstrations; only the recording, which `README.md` here names, is of a patient.
"""

import base64
import json
import sys
from collections.abc import Iterator
from io import BytesIO
from itertools import islice
from pathlib import Path

import numpy as np
from draw_ecg import SAMPLES_PER_SECOND, millivolts
from PIL import Image

from bench.retrieval_images import HZ, RHYTHMS, beats, ecg_page

KINDS = ("plain", "paper", "scan", "copy", "paper", "phone")
RECORDED_S = (0, 4, 8, 12, 16)  # where pages of the recording begin
RECORDED_KINDS = ("plain", "paper", "scan")
THUMBNAIL = (480, 480)

Case = tuple[str, Image.Image, dict[str, str]]


def cases() -> Iterator[Case]:
    """File name, page and metadata of each case."""
    signal = millivolts()
    at = np.arange(len(signal)) / SAMPLES_PER_SECOND
    recorded = np.interp(np.arange(0, at[-1], 1 / HZ), at, signal)
    for start in RECORDED_S:
        for kind in RECORDED_KINDS:
            draws = np.random.default_rng([3, start, RECORDED_KINDS.index(kind)])
            page, _ = ecg_page(recorded[start * HZ :], kind, draws)
            name = f"Record 208, from {start} s"
            about = {"rhythm": "ectopic beats", "paper": kind, "source": "recorded"}
            yield f"record-208-{start}-{kind}.png", page, {"name": name, **about}
    for number, rhythm in enumerate(RHYTHMS):
        for copy, kind in enumerate(KINDS):
            draws = np.random.default_rng([4, number, copy])
            page, _ = ecg_page(beats(rhythm, draws), kind, draws)
            name = f"Simulated {number * len(KINDS) + copy + 1}"
            about = {"rhythm": rhythm.replace("_", " "), "paper": kind, "source": "simulated"}
            yield f"simulated-{rhythm}-{copy + 1}.png", page, {"name": name, **about}


def thumbnail(page: Image.Image) -> str:
    """A WebP file as a data: URL, well below the 64 KiB that a case's metadata may have."""
    small, file = page.copy(), BytesIO()
    small.thumbnail(THUMBNAIL, Image.Resampling.LANCZOS)
    small.save(file, "WEBP", quality=60)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


def draw(out: Path, count: int | None = None) -> int:
    """Write them into `out`. How many there are."""
    out.mkdir(parents=True, exist_ok=True)
    lines = []
    for file, page, metadata in islice(cases(), count):
        page.save(out / file)
        lines.append(json.dumps({"id": file, **metadata, "thumbnail": thumbnail(page)}))
    (out / "cases.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return len(lines)


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        raise SystemExit("usage: draw_library.py OUT [COUNT]")
    count = int(sys.argv[2]) if len(sys.argv) == 3 else None
    print(f"{draw(Path(sys.argv[1]), count)} cases")
