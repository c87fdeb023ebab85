"""By hand, on Linux: `python -m pytest -m slow -s tests/pipeline/test_checkpoint_full.py`, 11 GB.

A checkpoint of MedGemma-4B's size in shards, random: what is read of it, how long it takes, and how
much memory.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import cycle
from math import prod
from pathlib import Path
from time import perf_counter

import numpy as np
import pytest

from build import tower
from build.tower import Tensor
from tests.pipeline.hub_server import Hub
from tests.pipeline.test_hub import DRIVER

pytestmark = pytest.mark.slow

CONFIG = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "model_type": "gemma3",
    "mm_tokens_per_image": 256,
    "text_config": {"model_type": "gemma3_text", "hidden_size": 2560},
    "vision_config": {
        "model_type": "siglip_vision_model",
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "image_size": 896,
        "patch_size": 14,
    },
}
SHARDS = 2
LANGUAGE = 60  # tensors of 128 MB, so about as many bytes as MedGemma-4B's language model
REPORT = """
for file, name in ("status", "VmHWM"), ("io", "rchar"):  # ru_maxrss would include our parent's
    lines = open(f"/proc/self/{file}").read().splitlines()
    print(dict(line.split(":") for line in lines)[name].split()[0])
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    directory = tmp_path_factory.mktemp("full") / "model"
    write(directory)
    yield directory
    shutil.rmtree(directory)  # pytest would keep it


def write(directory: Path) -> None:
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(CONFIG))
    shapes = tower.shapes(CONFIG)
    every = shapes | {f"language_model.layers.{i}.weight": (8192, 8192) for i in range(LANGUAGE)}
    names = sorted(every)
    weight_map: dict[str, str] = {}
    noise = cycle(_noise())
    for number in range(SHARDS):
        file = f"model-{number + 1:05}-of-{SHARDS:05}.safetensors"
        # The cut goes through the tower, as the real one's may.
        mine = [
            name for position, name in enumerate(names) if position * SHARDS // len(names) == number
        ]
        entries = {name: Tensor("BF16", every[name], 0, 2 * prod(every[name])) for name in mine}
        with (directory / file).open("wb") as stream:
            stream.write(tower.header(entries))
            for entry in entries.values():
                left = entry.size
                while left:
                    left -= stream.write(next(noise)[:left])
        weight_map |= dict.fromkeys(mine, file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def _noise() -> Iterator[bytes]:
    """Random BF16 values below 1/8 in size, in blocks."""
    random = np.random.default_rng(0)
    for _ in range(8):
        values = random.normal(0, 0.03, 1 << 22).astype(np.float32)
        yield (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()


def weigh(model: Path) -> tuple[int, int]:
    """Bytes of the tower, and of the whole."""
    ours = sum(2 * prod(shape) for shape in tower.shapes(CONFIG).values())
    return ours, sum(path.stat().st_size for path in model.glob("*.safetensors"))


def run(cwd: Path, source: str, **env: str) -> tuple[int, int]:
    """Extract in a process of its own: peak bytes of memory, bytes read."""
    (cwd / "out").mkdir()
    command = [sys.executable, "-c", DRIVER + REPORT, source]
    env = os.environ | {"PYTHONPATH": str(Path.cwd()), "HF_HOME": str(cwd / "hf")} | env
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=True)
    print(done.stderr)
    rss, rchar = done.stdout.splitlines()[-2:]
    return int(rss) * 1024, int(rchar)


def test_of_a_directory_only_the_tower_is_read(model: Path, tmp_path: Path) -> None:
    ours, whole = weigh(model)
    memory, read = run(tmp_path, str(model))
    print(f"read {read / 1e9:.2f} GB of {whole / 1e9:.2f} GB, peak {memory / 1e9:.2f} GB")
    assert read < 2.2 * ours  # once to tell its revision, once to copy it
    assert memory < ours / 2


def test_from_a_hub_only_the_tower_is_fetched(model: Path, tmp_path: Path) -> None:
    ours, whole = weigh(model)
    with Hub({"someone/full": model}).running() as hub:
        memory, _ = run(tmp_path, "someone/full", HF_ENDPOINT=hub.endpoint)
        fetched = sum(hub.served.values())
    print(f"fetched {fetched / 1e9:.2f} GB of {whole / 1e9:.2f} GB, peak {memory / 1e9:.2f} GB")
    assert ours < fetched < 1.01 * ours
    assert memory < ours / 2


def test_a_full_size_model_is_built_in_minutes(model: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "build", str(model), "--out", str(tmp_path / "out")]
    command += ["--recipe", "float", "--work", str(tmp_path / "work"), "--no-bars"]
    start = perf_counter()
    with subprocess.Popen(command) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    memory = usage.ru_maxrss * 1024
    print(f"built in {perf_counter() - start:.0f} s, peak {memory / 1e9:.2f} GB")
    assert process.returncode == 0
    assert memory < 8e9
    shutil.rmtree(tmp_path / "out")
