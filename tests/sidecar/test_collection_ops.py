"""The ops on collections as a client meets them, in a real process over each transport."""

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sidecar.case_store import About
from sidecar.collection import Collection
from tests.client import Client, Reply, StdioClient, ZmqClient


def png(seed: int) -> bytes:
    """A picture of 4 x 4 coloured squares."""
    colours = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    file = BytesIO()
    Image.fromarray(colours).resize((448, 448), Image.Resampling.NEAREST).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "cases")


def add(sidecar: Client, path: str, number: int, **params: Any) -> Reply:
    given = {"collection": path, "id": f"case {number}", "outputs": [], **params}
    return sidecar.ask("collection.add", {"image": png(number)}, given)


def search(sidecar: Client, path: str, number: int, **params: Any) -> list[dict[str, Any]]:
    given = {"collection": path, "outputs": [], **params}
    reply = sidecar.ask("collection.search", {"image": png(number)}, given)
    assert reply.ok, reply.message
    assert list(reply.arrays) == ["matches"]
    found: list[dict[str, Any]] = json.loads(reply.arrays["matches"].tobytes())
    return found


def test_a_case_is_added_found_and_removed(sidecar: Client, path: str) -> None:
    metadata = {"age": 71, "__proto__": {"x": 1}, "nested": [{"deep": [[[1.5, None]]]}]}
    for number in range(3):
        reply = add(sidecar, path, number, metadata=metadata if number == 1 else None)
        assert reply.ok, reply.message
        assert (reply.header["added"], reply.header["count"]) == (True, number + 1)
    found = search(sidecar, path, 1)
    assert (found[0]["id"], found[0]["metadata"]) == ("case 1", metadata)
    assert len(found) == 3
    assert "regions" not in found[0]
    assert [match["id"] for match in search(sidecar, path, 1, where={"age": 71})] == ["case 1"]
    assert len(search(sidecar, path, 1, k=2, regions=True)[0]["regions"]) == 0  # too few cases
    removed = sidecar.ask("collection.remove", params={"collection": path, "id": "case 1"})
    assert removed.header["count"] == 2
    assert "case 1" not in {match["id"] for match in search(sidecar, path, 1)}
    info = sidecar.ask("collection.info", params={"collection": path}).header
    hello = sidecar.ask("hello").header
    assert (info["count"], info["resolution"]) == (2, [448, 448])
    assert info["model"] == hello["model"]
    assert info["bytes"] > 0


def test_one_inference_gives_the_case_and_the_outputs(sidecar: Client, path: str) -> None:
    image = {"image": png(1)}
    encoded = sidecar.ask("encode", image)
    params = {"collection": path, "id": "case 1"}
    added = sidecar.ask("collection.add", image, params)
    assert list(added.arrays) == list(encoded.arrays)
    for name, array in encoded.arrays.items():
        assert np.array_equal(array, added.arrays[name])
    for name in ("model", "resolution", "norms", "flat"):
        assert added.header[name] == encoded.header[name]
    both = {"collection": path, "outputs": ["heatmap_png", "pooled_embedding"]}
    found = sidecar.ask("collection.search", image, both)
    assert list(found.arrays) == ["heatmap_png", "pooled_embedding", "matches"]


def test_embeddings_of_an_earlier_encode_are_as_good_as_the_image(
    sidecar: Client, path: str
) -> None:
    encoded = sidecar.ask("encode", {"image": png(1)}, {"resolution": 224})
    inputs = {name: encoded.arrays[name] for name in ("projected_embeddings", "pooled_embedding")}
    params = {"collection": path, "id": "case 1", "resolution": encoded.header["resolution"]}
    first = sidecar.ask("collection.add", inputs, params)
    assert first.header["added"], first.header
    again = add(sidecar, path, 1, resolution=224)
    assert not again.header["added"], again.header
    found = sidecar.ask("collection.search", inputs, params)
    assert json.loads(found.arrays["matches"].tobytes())[0]["similarity"] > 0.99


def test_a_repeat_is_a_success_and_another_case_needs_replace(sidecar: Client, path: str) -> None:
    assert add(sidecar, path, 1).header["added"]
    assert not add(sidecar, path, 1).header["added"]
    assert add(sidecar, path, 2, id="case 1").code == "collection.exists"
    assert add(sidecar, path, 2, id="case 1", replace=True).header["count"] == 1


def test_another_resolution_is_refused(sidecar: Client, path: str) -> None:
    add(sidecar, path, 1)
    refused = add(sidecar, path, 2, resolution=224)
    assert refused.code == "collection.mismatch"
    assert "448 x 448" in refused.message
    assert "224 x 224" in refused.message
    params = {"collection": path, "resolution": 224}
    assert sidecar.ask("collection.search", {"image": png(1)}, params).code == "collection.mismatch"


def test_what_is_not_there_is_told(sidecar: Client, path: str) -> None:
    params = {"collection": path, "id": "case 1"}
    for op, inputs in (("info", None), ("remove", None), ("search", {"image": png(1)})):
        assert sidecar.ask(f"collection.{op}", inputs, params).code == "collection.not_found"
    assert not Path(path).exists()


@pytest.mark.parametrize("op", ["collection.add", "collection.search"])
@pytest.mark.parametrize(
    ("inputs", "params"),
    [
        ({}, {}),
        ({"image": b"x", "rgb": np.zeros((2, 2, 3), np.uint8)}, {}),
        ({"pooled_embedding": np.zeros((1, 8), np.float32)}, {}),
        (
            {
                "pooled_embedding": np.zeros((1, 8), np.float32),
                "projected_embeddings": np.zeros((1, 256, 8), np.float32),
            },
            {},  # no resolution
        ),
        ({"image": b"x"}, {"collection": "relative/cases"}),
        ({"image": b"x"}, {"collection": "/a\0b"}),
        ({"image": b"x"}, {"collection": 7}),
        ({"image": b"x"}, {"collection": None}),
        ({"image": b"x"}, {"priority": "high"}),
    ],
)
def test_a_request_that_is_none_is_malformed(
    sidecar: Client, path: str, op: str, inputs: dict[str, Any], params: dict[str, Any]
) -> None:
    given = {"collection": path, "id": "case 1", **params}
    assert sidecar.ask(op, inputs, given).code == "request.malformed"
    assert not Path(path).exists()


@pytest.mark.parametrize(
    "params",
    [
        *({"id": ""}, {"id": "x" * 257}, {"id": 7}, {"id": None}, {"replace": 1}),
        *({"metadata": []}, {"metadata": {"a": b"bytes"}}, {"metadata": {"a": float("nan")}}),
        {"metadata": {"a": "x" * 65536}},
    ],
    ids=lambda params: str(params)[:40],
)
def test_a_case_out_of_bounds_is_malformed(
    sidecar: Client, path: str, params: dict[str, Any]
) -> None:
    given = {"collection": path, "id": "case 1", **params}
    assert sidecar.ask("collection.add", {"image": png(1)}, given).code == "request.malformed"


@pytest.mark.parametrize("params", [{"k": 0}, {"k": 1001}, {"k": 1.5}, {"k": True}, {"where": []}])
def test_a_search_out_of_bounds_is_malformed(
    sidecar: Client, path: str, params: dict[str, Any]
) -> None:
    given = {"collection": path, **params}
    assert sidecar.ask("collection.search", {"image": png(1)}, given).code == "request.malformed"


def test_two_images_at_once_are_no_case(sidecar: Client, path: str) -> None:
    two = {"pixel_values": np.zeros((2, 3, 448, 448), np.float32)}
    params = {"collection": path, "id": "case 1"}
    assert sidecar.ask("collection.add", two, params).code == "tensor.shape"
    assert not Path(path).exists()


def test_metadata_may_take_all_they_are_allowed(sidecar: Client, path: str) -> None:
    metadata = {"text": "é" * 32762}
    for number in range(3):
        reply = add(sidecar, path, number, metadata=metadata)
        assert reply.ok, reply.message
    assert [match["metadata"] for match in search(sidecar, path, 1)] == [metadata] * 3


def test_a_collection_that_another_process_has_open_is_busy(sidecar: Client, path: str) -> None:
    about = About("a" * 64, "linear", (448, 448), 8)
    held = Collection.open(Path(path), about, create=True)
    refused = add(sidecar, path, 1)
    assert (refused.code, refused.header["error"]["retryable"]) == ("collection.busy", True)
    held.close()
    assert sidecar.ask("collection.info", params={"collection": path}).header["count"] == 0


def test_a_collection_is_one_file_once_the_sidecar_has_ended(
    transport: type[StdioClient] | type[ZmqClient], model: Path, path: str
) -> None:
    with transport(model) as sidecar:
        for number in range(3):
            add(sidecar, path, number)
        sidecar.ask("shutdown")
        sidecar.process.wait(60)
    assert [name.name for name in Path(path).parent.iterdir()] == ["cases"]
    with transport(model) as sidecar:
        assert len(search(sidecar, path, 1, read_only=True)) == 3
        info = sidecar.ask("collection.info", params={"collection": path}).header
        assert info["read_only"]  # it is open already


def test_paths_ids_and_metadata_are_not_logged(model: Path, tmp_path: Path) -> None:
    path = str(tmp_path / "mrs-smith" / "cases")
    with StdioClient(model) as sidecar:
        add(sidecar, path, 1, id="mrs-smith", metadata={"name": "mrs-smith"})
        Path(path).parent.mkdir()
        add(sidecar, path, 1, id="mrs-smith", metadata={"name": "mrs-smith"})
        search(sidecar, path, 1, where={"name": "mrs-smith"})
        text = Path(path).with_name("mrs-smith.txt")
        text.write_text("mrs-smith " * 20)
        refused = add(sidecar, str(text), 1, id="mrs-smith", metadata={"name": "mrs-smith"})
        assert refused.code == "collection.unreadable"
        assert "mrs-smith" not in refused.message
    assert len(sidecar.log) >= 4
    assert "mrs-smith" not in "".join(sidecar.log)
