"""Outliers in a few channels, as large transformers have them: a few channels times 50."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from build.__main__ import build
from build.recipes import FAITHFUL, Choice
from tests import tiny

FACTOR = 50
CHANNELS = [3, 17, 40]


def norms(layer: Any) -> None:
    """Both LayerNorms; what reads them divides, so that the model computes what it did."""
    attention = layer.self_attn
    readers = {
        layer.layer_norm1: (attention.q_proj, attention.k_proj, attention.v_proj),
        layer.layer_norm2: (layer.mlp.fc1,),
    }
    for norm, linear in readers.items():
        norm.weight[CHANNELS] *= FACTOR
        norm.bias[CHANNELS] *= FACTOR
        for reader in linear:
            reader.weight[:, CHANNELS] /= FACTOR


def values(layer: Any) -> None:
    """The values of attention."""
    attention = layer.self_attn
    attention.v_proj.weight[CHANNELS] *= FACTOR
    attention.v_proj.bias[CHANNELS] *= FACTOR
    attention.out_proj.weight[:, CHANNELS] /= FACTOR


@pytest.mark.parametrize("plant", [norms, values])
def test_planted_outliers_break_the_seed_recipe_and_not_ours(
    plant: Callable[[nn.Module], None], tmp_path: Path
) -> None:
    model = tiny.model()
    with torch.no_grad():
        for layer in model.model.vision_tower.encoder.layers:
            plant(layer)
    model.save_pretrained(tmp_path / "checkpoint")
    missed = {}
    for recipe in ("seed", "default"):
        out = tmp_path / recipe
        choice = Choice(projection="projector", no_bars=True)
        build(str(tmp_path / "checkpoint"), out, recipe, choice, work=tmp_path / "work")
        figures = json.loads((out / "report.json").read_text())["resolutions"]["448"]
        missed[recipe] = {
            name: figures[name]["value"]
            for name, bar in asdict(FAITHFUL).items()
            if bar is not None and figures[name]["value"] < bar
        }
    assert missed["seed"].keys() >= {"token_cosine_mean", "heatmap_r_min"}
    assert missed["default"] == {}
