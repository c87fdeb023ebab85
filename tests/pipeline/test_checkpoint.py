import json
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import Gemma3Config

from build import tower
from build.artifacts import SOURCE, WEIGHTS, BuildError, read_geometry
from build.checkpoint import locate
from build.pipeline import Inputs
from sidecar.manifest import Normalisation
from tests.pipeline import odd


def extract(source: Path, out: Path) -> dict[str, torch.Tensor]:
    out.mkdir()
    locate(str(source))(Inputs(), out)
    return load_file(out / WEIGHTS)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", odd.DTYPES)
@pytest.mark.parametrize("layout", odd.LAYOUTS)
def test_every_layout_gives_the_tower_alone_as_it_is_stored(
    layout: str, dtype: str, shards: int, tmp_path: Path
) -> None:
    found = extract(odd.write(tmp_path / "model", layout, dtype, shards), tmp_path / "out")
    expected = odd.tower()
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.dtype == odd.DTYPES[dtype]
        assert torch.equal(tensor, expected[name].to(tensor.dtype)), name


def test_what_transformers_writes_today_is_read(tmp_path: Path) -> None:
    odd.model().save_pretrained(tmp_path / "model", max_shard_size="500KB")
    found = extract(tmp_path / "model", tmp_path / "out")
    assert all(torch.equal(tensor, odd.tower()[name]) for name, tensor in found.items())
    assert found.keys() == odd.tower().keys()


def test_the_shapes_we_expect_are_those_of_transformers_own_model() -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in odd.tower().items()}
    assert tower.shapes(odd.model().config.to_dict()) == expected


def test_the_sizes_we_assume_where_the_config_has_none_are_those_of_transformers() -> None:
    config = Gemma3Config()
    vision = {name: getattr(config.vision_config, name) for name in tower.VISION_DEFAULTS}
    text = {name: getattr(config.text_config, name) for name in tower.TEXT_DEFAULTS}
    assert (vision, text) == (tower.VISION_DEFAULTS, tower.TEXT_DEFAULTS)


def test_the_revision_of_a_directory_follows_its_contents_not_its_layout(tmp_path: Path) -> None:
    one = locate(str(odd.write(tmp_path / "a" / "model", "plain", shards=2)))
    same = locate(str(odd.write(tmp_path / "b" / "model", "model", shards=1)))
    norm = {"vision_tower.post_layernorm.bias": torch.ones(odd.HIDDEN, dtype=torch.bfloat16)}
    other = locate(str(odd.write(tmp_path / "c" / "model", "plain", shards=2, change=norm)))
    assert repr(one) == repr(same)  # and so the key of what is made of it
    assert one.revision != other.revision


def test_the_source_is_written_down_without_the_path_to_it(tmp_path: Path) -> None:
    extract(odd.write(tmp_path / "patient-7" / "model"), tmp_path / "out")
    source = json.loads((tmp_path / "out" / SOURCE).read_text())
    assert source["model_id"] == "model"
    assert len(source["revision"]) == 40
    assert "patient-7" not in (tmp_path / "out" / SOURCE).read_text()


def test_an_image_processor_within_the_processor_of_transformers_5_is_found(tmp_path: Path) -> None:
    model = odd.write(tmp_path / "model")
    (model / "preprocessor_config.json").unlink()
    settings = {**odd.PREPROCESSOR, "image_mean": [0.1, 0.2, 0.3], "resample": 3}
    (model / "processor_config.json").write_text(json.dumps({"image_processor": settings}))
    extract(model, tmp_path / "out")
    how = read_geometry(tmp_path / "out").normalisation
    assert how == Normalisation(mean=(0.1, 0.2, 0.3), resample="bicubic", rescale=how.rescale)


def test_a_checkpoint_without_an_image_processor_gets_the_usual_one(tmp_path: Path) -> None:
    model = odd.write(tmp_path / "model")
    (model / "preprocessor_config.json").unlink()
    extract(model, tmp_path / "out")
    shape = read_geometry(tmp_path / "out")
    assert shape.normalisation == Normalisation()
    assert (shape.native, shape.patch_size, shape.layers) == (odd.IMAGE, 14, odd.LAYERS)
    assert (shape.hidden, shape.text_hidden) == (odd.HIDDEN, odd.TEXT_HIDDEN)
    assert shape.resolutions == (224, 448)


def test_a_large_language_model_costs_no_memory(tmp_path: Path) -> None:
    model = odd.write(tmp_path / "model", "plain")
    _append_hole(model / "model.safetensors", "language_model.huge", 1 << 30)
    tracemalloc.start()
    extract(model, tmp_path / "out")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 32 << 20


def _append_hole(path: Path, name: str, size: int) -> None:
    """Add a tensor of `size` bytes that takes no room on the disk."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    span = [len(data), len(data) + size]
    header[name] = {"dtype": "F32", "shape": [size // 4], "data_offsets": span}
    text = json.dumps(header).encode()
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text + data)
        stream.truncate(8 + len(text) + span[1])


# --- what is refused -------------------------------------------------------------------------

FC1 = "vision_tower.encoder.layers.3.mlp.fc1.weight"
NORM = "multi_modal_projector.mm_soft_emb_norm.weight"
POST = "vision_tower.post_layernorm.weight"


def changed(name: str, tensor: torch.Tensor | None) -> Callable[[Path], None]:
    return lambda directory: _rewrite(directory, {name: tensor})


def _rewrite(directory: Path, change: dict[str, torch.Tensor | None]) -> None:
    odd.write(directory.with_name("changed"), change=change)
    for file in directory.with_name("changed").iterdir():
        file.replace(directory / file.name)


def config(**changes: object) -> Callable[[Path], None]:
    return lambda directory: (odd.edit_config(directory, **changes), None)[1]


def truncated(directory: Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def truncated_header(directory: Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])


def no_safetensors(directory: Path) -> None:
    (directory / "model.safetensors").write_bytes(b"<html>Not found</html>")


def only_bin(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")


def adapter(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "adapter_model.safetensors")
    (directory / "config.json").unlink()
    base = {"base_model_name_or_path": "google/medgemma-4b-it", "peft_type": "LORA"}
    (directory / "adapter_config.json").write_text(json.dumps(base))


def shard_missing(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "model-00001-of-00002.safetensors")
    index = {"weight_map": {FC1: "model-00002-of-00002.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def index_elsewhere(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    index = {"weight_map": {FC1: "../../etc/model.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


NAN = torch.full((odd.HIDDEN,), float("nan"), dtype=torch.bfloat16)
INF = torch.zeros(odd.HIDDEN, dtype=torch.float16)
INF[-1] = -float("inf")
QUANTISED = torch.zeros((200, odd.HIDDEN), dtype=torch.int8)
UNMERGED = "vision_tower.encoder.layers.0.self_attn.q_proj.lora_A.default.weight"


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        pytest.param(changed(FC1, None), [FC1, r"\[200, 96\]", "lacks"], id="a tensor is missing"),
        pytest.param(
            changed(FC1, torch.zeros(7, 96)), [r"fc1", r"\[7, 96\]", r"\[200, 96\]"], id="misshapen"
        ),
        pytest.param(changed(FC1, QUANTISED), ["fc1", "I8", "quantised"], id="quantised"),
        pytest.param(changed(NORM, NAN), [NORM, "NaN"], id="NaN"),
        pytest.param(changed(POST, INF), [POST, "infinity"], id="infinity in the last place"),
        pytest.param(changed(UNMERGED, NAN), ["LoRA", "unmerged"], id="LoRA weights unmerged"),
        pytest.param(
            changed("model.vision_tower.post_layernorm.weight", INF),
            ["post_layernorm", "twice"],
            id="the same tensor in two layouts",
        ),
        pytest.param(
            changed("vision_tower.encoder.layers.9.mlp.fc1.bias", INF),
            ["layers.9", "does not have"],
            id="a layer more than the config has",
        ),
        pytest.param(
            adapter, ["LoRA adapter for google/medgemma-4b-it", "merge"], id="LoRA adapter"
        ),
        pytest.param(truncated, ["cut short or corrupt", "bytes"], id="truncated"),
        pytest.param(truncated_header, ["ends inside its header"], id="truncated header"),
        pytest.param(no_safetensors, ["cut short or corrupt"], id="not safetensors at all"),
        pytest.param(only_bin, ["neither model.safetensors nor"], id="only a .bin file"),
        pytest.param(shard_missing, ["lacks the shard model-00002"], id="a shard is missing"),
        pytest.param(index_elsewhere, ["expected the name of"], id="the index points elsewhere"),
        pytest.param(
            config(model_type="llava", architectures=["LlavaForConditionalGeneration"]),
            ["llava", "LlavaForConditionalGeneration", "gemma3"],
            id="another architecture",
        ),
        pytest.param(
            config(model_type="gemma3_text"), ["gemma3_text", "no vision tower"], id="text only"
        ),
        pytest.param(config(model_type=None), ["no known type"], id="no architecture"),
        pytest.param(config(mm_tokens_per_image=64), ["64", "256"], id="another token count"),
        pytest.param(
            config(vision_config={"image_size": 450, "patch_size": 14}),
            ["450", "224"],
            id="an image size that does not pool to 16 x 16",
        ),
    ],
)
def test_a_checkpoint_we_cannot_use_is_named_in_one_sentence(
    spoil: Callable[[Path], None], said: list[str], tmp_path: Path
) -> None:
    directory = odd.write(tmp_path / "model")
    spoil(directory)
    with pytest.raises(BuildError) as caught:
        extract(directory, tmp_path / "out")
    for part in said:
        assert caught.match(part)
    assert "\n" not in str(caught.value)


def test_what_is_neither_a_directory_nor_an_id_is_named(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="expected a directory"):
        locate(str(tmp_path / "nowhere"))
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(BuildError, match="expected a directory"):
        locate(str(tmp_path / "model.safetensors"))


def test_a_revision_goes_with_a_hub_id_only(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="--revision"):
        locate(str(tmp_path), "main")
