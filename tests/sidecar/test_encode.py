"""Requests that a client would make of a running sidecar, over each transport."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import client, fuzz, stand_in
from tests.client import PATIENCE, ROOT, Client, ZmqClient, message

PAGE = ROOT / "examples" / "ecg.png"


def picture(width: int = 60, height: int = 40) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def png(rgb: np.ndarray, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, kind, **({} if kind == "PNG" else {"quality": 95}))
    return file.getvalue()


def normalised(rgb: np.ndarray, side: int) -> np.ndarray:
    resized = np.asarray(Image.fromarray(rgb).resize((side, side), Image.Resampling.BILINEAR))
    values = ((resized / 255).astype(np.float32) - np.float32(0.5)) / np.float32(0.5)
    return np.ascontiguousarray(values.transpose(2, 0, 1)[None])


def expected(pixel_values: np.ndarray) -> dict[str, np.ndarray]:
    """What the stand-in's graph says, in numpy."""
    n, channels, height, width = pixel_values.shape
    rows, columns = (  # the pixel nearest to each cell's centre; of two, the upper left one
        np.arange(16) * (side // 16) + side // 32 - 1 for side in (height, width)
    )
    small = pixel_values[:, :, rows][:, :, :, columns].reshape(n, channels, 256)
    embeddings = small.transpose(0, 2, 1) @ stand_in.weight()
    norms = np.linalg.norm(embeddings, axis=-1)
    low, high = norms.min(-1, keepdims=True), norms.max(-1, keepdims=True)
    return {
        "projected_embeddings": embeddings,
        "attention_scores": (norms - low) / np.maximum(high - low, 1e-12),
        "pooled_embedding": embeddings.mean(1),
    }


def test_hello_tells_what_runs_and_what_it_allows(sidecar: Client, model: Path) -> None:
    hello = sidecar.ask("hello").header
    assert hello["ok"]
    assert hello["protocol"] == [1, 1]
    assert hello["state"] == "ready"
    assert hello["model_id"] == "tests/stand-in"
    assert len(hello["model"]) == 64
    assert hello["resolutions"] == [224, 448]
    assert hello["limits"]["max_queue"] > 0


@pytest.mark.parametrize(
    "shape", [(1, 3, 224, 224), (1, 3, 448, 448), (1, 3, 448, 224), (3, 3, 224, 224)], ids=str
)
def test_a_tensor_gives_what_numpy_gives(sidecar: Client, shape: tuple[int, ...]) -> None:
    tensor = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    reply = sidecar.ask("encode", {"pixel_values": tensor})
    assert reply.ok, reply.header
    assert reply.header["resolution"] == list(shape[2:])
    arrays = reply.arrays
    assert list(arrays) == ["projected_embeddings", "attention_scores", "pooled_embedding"]
    for name, array in expected(tensor).items():
        np.testing.assert_allclose(arrays[name], array, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("side", [224, 448])
def test_three_kinds_of_input_give_the_same_arrays(sidecar: Client, side: int) -> None:
    rgb = picture()
    replies = [
        sidecar.ask("encode", inputs, {"resolution": side})
        for inputs in ({"image": png(rgb)}, {"rgb": rgb}, {"pixel_values": normalised(rgb, side)})
    ]
    assert [reply.code for reply in replies] == ["ok"] * 3
    for reply in replies[1:]:
        for name, array in reply.arrays.items():
            np.testing.assert_array_equal(array, replies[0].arrays[name])


def test_a_reply_says_where_its_numbers_come_from(sidecar: Client) -> None:
    digest = sidecar.ask("hello").header["model"]
    header = sidecar.ask("encode", {"rgb": picture()}).header
    assert header["model"] == digest
    assert header["resolution"] == [448, 448]
    assert set(header["timing"]) == {"queue_ms", "preprocess_ms", "inference_ms", "drawing_ms"}
    assert all(value >= 0 for value in header["timing"].values())


def test_height_and_width_may_differ(sidecar: Client) -> None:
    reply = sidecar.ask("encode", {"rgb": picture()}, {"resolution": [224, 448]})
    assert reply.header["resolution"] == [224, 448]


def test_only_the_outputs_asked_for_come_back_in_that_order(sidecar: Client) -> None:
    asked = ["heatmap_png", "pooled_embedding"]
    reply = sidecar.ask("encode", {"rgb": picture()}, {"outputs": asked})
    assert list(reply.arrays) == asked


@pytest.mark.parametrize("kind", ["image", "rgb"])
def test_a_heatmap_lies_on_the_image_with_its_legend_below(sidecar: Client, kind: str) -> None:
    rgb = picture(120, 80)
    inputs = {"image": png(rgb)} if kind == "image" else {"rgb": rgb}
    params = {"outputs": ["heatmap_png"], "heatmap": {"colormap": "viridis", "alpha": 0}}
    drawn = Image.open(io.BytesIO(sidecar.ask("encode", inputs, params).payloads[0]))
    assert drawn.format == "PNG"
    assert drawn.width == 120
    assert drawn.height > 80
    np.testing.assert_array_equal(np.asarray(drawn)[:80], rgb)  # alpha 0 shows the image alone


def test_a_heatmap_of_a_tensor_is_the_map_alone(sidecar: Client) -> None:
    params = {"outputs": ["heatmap_png"], "heatmap": {"legend": False}}
    tensor = {"pixel_values": normalised(picture(), 224)}
    drawn = Image.open(io.BytesIO(sidecar.ask("encode", tensor, params).payloads[0]))
    assert drawn.size == (224, 224)


def test_a_reply_tells_the_norms_that_the_scores_were_scaled_from(sidecar: Client) -> None:
    pair = np.concatenate([normalised(picture(), 224), normalised(picture(30, 20), 224)])
    reply = sidecar.ask("encode", {"pixel_values": pair})
    norms = np.linalg.norm(reply.arrays["projected_embeddings"], axis=-1)
    expected = [[row.min(), row.max()] for row in norms]
    np.testing.assert_allclose(reply.header["norms"], expected, rtol=1e-5)
    assert reply.header["flat"] == [False, False]


@pytest.mark.parametrize("colour", [(255, 255, 255), (128, 128, 128), (255, 228, 225), (0, 0, 0)])
def test_an_empty_page_is_flat_and_gets_no_colour(sidecar: Client, colour: tuple[int, ...]) -> None:
    rgb = np.full((300, 400, 3), colour, np.uint8)
    rgb[::7, ::5] ^= 1  # noise that nobody sees
    reply = sidecar.ask("encode", {"rgb": rgb}, {"outputs": ["heatmap_png"]})
    assert reply.header["flat"] == [True]
    drawn = np.asarray(Image.open(io.BytesIO(reply.payloads[0])))
    np.testing.assert_array_equal(drawn[:300], rgb)
    assert len(drawn) > 300  # the legend says that nothing stands out


ENCODE = {"rgb": picture()}
DEEP: list[object] = []
for _ in range(20):
    DEEP = [DEEP]

BAD = {
    "a text file named .png": ({"image": b"Dear colleague"}, {}, "image.unreadable"),
    "an empty image": ({"image": b""}, {}, "image.unreadable"),
    "a JPEG cut short": ({"image": png(picture(), "JPEG")[:-400]}, {}, "image.unreadable"),
    "an image of another format": ({"image": png(picture(), "TIFF")}, {}, "image.unreadable"),
    "a size that is not allowed": (ENCODE, {"resolution": 300}, "tensor.shape"),
    "a tensor of a size not allowed": (
        {"pixel_values": np.zeros((1, 3, 100, 100), np.float32)},
        {},
        "tensor.shape",
    ),
    "a tensor of four channels": (
        {"pixel_values": np.zeros((1, 4, 224, 224), np.float32)},
        {},
        "tensor.shape",
    ),
    "a tensor without a batch": (
        {"pixel_values": np.zeros((3, 224, 224), np.float32)},
        {},
        "tensor.shape",
    ),
    "a batch of none": (
        {"pixel_values": np.zeros((0, 3, 224, 224), np.float32)},
        {},
        "tensor.shape",
    ),
    "a tensor that contradicts the resolution": (
        {"pixel_values": np.zeros((1, 3, 224, 224), np.float32)},
        {"resolution": 448},
        "tensor.shape",
    ),
    "NaN": (
        {"pixel_values": np.full((1, 3, 224, 224), np.nan, np.float32)},
        {},
        "tensor.not_finite",
    ),
    "infinity": (
        {"pixel_values": np.full((1, 3, 224, 224), np.inf, np.float32)},
        {},
        "tensor.not_finite",
    ),
    "numbers so large that the model overflows": (
        {"pixel_values": np.full((1, 3, 224, 224), 3e38, np.float32)},
        {},
        "tensor.not_finite",
    ),
    "rgb of four channels": ({"rgb": np.zeros((9, 9, 4), np.uint8)}, {}, "tensor.shape"),
    "rgb of no rows": ({"rgb": np.zeros((0, 9, 3), np.uint8)}, {}, "tensor.shape"),
    "two inputs": (ENCODE | {"image": png(picture())}, {}, "request.malformed"),
    "no input": ({}, {}, "request.malformed"),
    "an input of another name": ({"picture": picture()}, {}, "request.malformed"),
    "an input of the wrong type": (
        {"pixel_values": np.zeros((1, 3, 9, 9), np.uint8)},
        {},
        "request.malformed",
    ),
    "an unknown output": (ENCODE, {"outputs": ["logits"]}, "request.unsupported"),
    "no outputs": (ENCODE, {"outputs": []}, "request.malformed"),
    "a heatmap of a batch": (
        {"pixel_values": np.zeros((2, 3, 224, 224), np.float32)},
        {"outputs": ["heatmap_png"]},
        "request.unsupported",
    ),
    "an unknown colour map": (ENCODE, {"heatmap": {"colormap": "jet"}}, "request.malformed"),
    "an unknown blend": (ENCODE, {"heatmap": {"blend": "add"}}, "request.malformed"),
    "a legend of numbers": (ENCODE, {"heatmap": {"legend": {"low": 1}}}, "request.malformed"),
    "a legend without a font": (
        ENCODE,
        {"heatmap": {"legend": {"low": "低"}}},
        "request.malformed",
    ),
    "an alpha above one": (ENCODE, {"heatmap": {"alpha": 2}}, "request.malformed"),
    "an alpha that is NaN": (ENCODE, {"heatmap": {"alpha": float("nan")}}, "request.malformed"),
    "a resolution that is text": (ENCODE, {"resolution": "448"}, "request.malformed"),
}


@pytest.mark.parametrize(("inputs", "params", "code"), BAD.values(), ids=BAD)
def test_a_bad_request_is_answered_with_its_code_and_the_sidecar_goes_on(
    sidecar: Client, inputs: dict[str, object], params: dict[str, object], code: str
) -> None:
    reply = sidecar.ask("encode", inputs, params)
    assert reply.code == code, reply.header
    assert reply.message.endswith((".", "}'"))
    assert reply.header["error"]["retryable"] is False
    assert sidecar.ask("encode", ENCODE).ok


def test_an_unknown_op_is_answered(sidecar: Client) -> None:
    assert sidecar.ask("embed").code == "request.unsupported"


def test_unknown_keys_are_ignored(sidecar: Client) -> None:
    assert sidecar.ask("encode", ENCODE, {"since": "version 2"}).ok


@pytest.mark.parametrize(
    "frames",
    [
        [b""],
        [b"\xc1"],
        [b"\xff" * 100],
        [b"[" * 60_000],
        [b"\x91" * 60_000],
        [message("hello", 2**32)[0]],
        [message("hello", -1)[0]],
        [message("hello", True)[0]],
        [message("hello", "7")[0]],  # type: ignore[arg-type]
    ],
    ids=[
        "nothing",
        "a byte msgpack never uses",
        "noise",
        "text",
        "60,000 arrays in each other",
        "an id too large",
        "an id below zero",
        "an id that is true",
        "an id that is text",
    ],
)
def test_a_message_whose_id_cannot_be_read_is_answered_with_none(
    sidecar: Client, frames: list[bytes]
) -> None:
    sidecar.send(frames)
    reply = sidecar.reply(None)
    assert reply.code == "request.malformed"
    assert sidecar.ask("hello").ok


@pytest.mark.parametrize(
    "frames",
    [message("hello", 70_000) * 8, message("hello", 70_000, params={"deep": DEEP})],
    ids=["eight frames", "twenty levels"],
)
def test_a_message_whose_id_can_be_read_is_answered_under_it(
    sidecar: Client, frames: list[bytes]
) -> None:
    sidecar.send(frames)
    assert sidecar.reply(70_000).code == "request.malformed"


def test_a_message_of_nine_frames_is_answered(sidecar: Client) -> None:
    sidecar.send(message("hello", 70_000) * 9)
    id = 70_000 if isinstance(sidecar, ZmqClient) else None  # stdio reads no more than eight
    assert sidecar.reply(id).code == "request.malformed"


def test_a_header_too_large_is_refused(sidecar: Client) -> None:
    sidecar.send(message("hello", 7, params={"padding": "x" * 140_000}))
    assert sidecar.reply(None).code == "request.too_large"


@pytest.mark.parametrize("by", [-4, 4])
def test_a_payload_of_another_length_than_declared_is_refused(sidecar: Client, by: int) -> None:
    header, payload = message("encode", 70_001, ENCODE)
    sidecar.send([header, payload[:by] if by < 0 else payload + bytes(by)])
    assert sidecar.reply(70_001).code == "request.malformed"


def test_another_protocol_version_is_refused_with_both_named(sidecar: Client) -> None:
    header = message("hello", 70_002)[0].replace(b"\xa1v\x01", b"\xa1v\x02")
    sidecar.send([header])
    reply = sidecar.reply(70_002)
    assert reply.code == "protocol.version"
    assert "2" in reply.message
    assert "1" in reply.message


def test_stats_count_what_was_answered(sidecar: Client) -> None:
    before = sidecar.ask("stats").header["counts"].get("encode", {})
    sidecar.ask("encode", ENCODE, {"resolution": 224})
    sidecar.ask("encode", ENCODE, {"resolution": 5})
    stats = sidecar.ask("stats").header
    after = stats["counts"]["encode"]
    assert after["ok"] == before.get("ok", 0) + 1
    assert after["tensor.shape"] == before.get("tensor.shape", 0) + 1
    assert stats["queue"] == {"requests": 0, "bytes": 0}
    stages = stats["latency"]["224x224"]
    assert set(stages) == {"queue_ms", "preprocess_ms", "inference_ms", "drawing_ms", "total_ms"}
    assert stages["total_ms"]["p50"] <= stages["total_ms"]["p99"]
    assert stats["expected_ms"]["224x224"] > 0
    assert stats["memory"]["peak_rss_bytes"] >= stats["memory"]["rss_bytes"] * 0.5 > 0
    assert stats["versions"]["onnxruntime"]


def test_shutdown_is_answered_and_ends_the_process(transport: type[Client], model: Path) -> None:
    with transport(model) as sidecar:
        assert sidecar.ask("shutdown").ok
        assert sidecar.process.wait(PATIENCE) == 0


def test_the_command_line_writes_what_a_server_answers(
    sidecar: Client, model: Path, tmp_path: Path
) -> None:
    done = client.run_cli("encode", PAGE, "--model", model, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    reply = sidecar.ask(
        "encode",
        {"image": PAGE.read_bytes()},
        {
            "outputs": [
                "projected_embeddings",
                "attention_scores",
                "pooled_embedding",
                "heatmap_png",
            ]
        },
    )
    written = np.load(tmp_path / "ecg.npz")
    arrays = reply.arrays
    drawn = arrays.pop("heatmap_png")
    assert sorted(written) == sorted(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(written[name], array)
    assert (tmp_path / "ecg.heatmap.png").read_bytes() == drawn.tobytes()


def test_after_each_of_a_thousand_mutated_messages_the_connection_answers(sidecar: Client) -> None:
    assert fuzz.run(sidecar, seed=1, count=1000).total() == 1000
