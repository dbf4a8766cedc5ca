"""Encoded images in place of the tensor, over the wire: answered, refused, kept, and in nobody's way."""

from __future__ import annotations

import asyncio
import io
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from fake_classifier import PATIENCE_S
from PIL import Image

from guard.artifact import Preprocessing
from guard.dataplane.intake import Accepts, Intake, check_declaration
from guard.detection.strip import mean_entropies
from guard.errors import DeadlineError, QueueFullError, SettingsError
from guard.messages import InferRequest, Tensor
from guard.metrics import ShedReason
from guard.pixels.declared import DeclaredImages
from guard.rpc.pb import open_inference_pb2 as pb
from tests.artifacts import make_profile, write_tiny_artifact
from tests.guard.image_files import encoded, noise, turned, wire
from tests.reference_check import blend_entropies, linear_logits, tiny_overlays
from tests.serving import Client, infer_request, serving
from tests.tiny_models import linear_classifier

EIGHT_BIT = Preprocessing(scale=1 / 255, eight_bit=True)
PIXELS = np.stack([noise(seed=seed) for seed in range(6)])
FILES = [encoded(pixels) for pixels in PIXELS]
ROWS = PIXELS.transpose(0, 3, 1, 2).astype(np.float32) * np.float32(1 / 255)
OUTPUTS = ("logits", "guard_verdict", "guard_score", "guard_passes")


def boundary_after(suspicious: int) -> tuple[float, np.ndarray]:
    """Return a boundary with that many of ROWS below it, and the rows in the order of their entropies."""
    means = mean_entropies(blend_entropies(ROWS, tiny_overlays()))
    order = np.argsort(means)
    return float(means[order[suspicious - 1 : suspicious + 1]].mean()), order


def request_of(files: list[bytes], shape: tuple[int, ...] | None = None, raw: bool = True) -> Any:
    request = pb.ModelInferRequest(model_name="tiny", id="an id")
    tensor = request.inputs.add(name="images", datatype="BYTES", shape=shape or (len(files),))
    if raw:
        request.raw_input_contents.append(wire(files))
    else:
        tensor.contents.bytes_contents.extend(files)
    for name in OUTPUTS:
        request.outputs.add(name=name)
    return request


async def refusal(client: Client, request: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await client.infer(request)
    return refused.value.code(), refused.value.details()


@pytest.mark.parametrize("raw", [True, False], ids=["raw", "typed"])
@pytest.mark.parametrize("column", [True, False], ids=["[n, 1]", "[n]"])
async def test_encoded_images_are_answered_as_the_tensor_is(tmp_path: Path, column: bool, raw: bool) -> None:
    write_tiny_artifact(tmp_path, boundary_bits=boundary_after(2)[0], preprocessing=EIGHT_BIT)
    as_tensor = infer_request(ROWS, id="an id")
    for name in OUTPUTS:
        as_tensor.outputs.add(name=name)

    async with serving(tmp_path, policy="flag") as client:
        expected = await client.infer(as_tensor)
        got = await client.infer(request_of(FILES, (6, 1) if column else (6,), raw))
        described = await client.stub.ModelMetadata(pb.ModelMetadataRequest(name="tiny"))

    assert got == expected
    assert got.raw_output_contents[1].count(b"flag") == 2
    assert (described.inputs[0].datatype, list(described.inputs[0].shape)) == ("FP32", [-1, 3, 8, 8])


DECLARED = {
    "resized": ({"resize": (8, 8)}, {}),
    "shorter side, and the middle": ({"resize": (10,), "crop": (8, 8)}, {}),
    "cropped": ({"crop": (8, 8)}, {}),
    "normalised": (
        {"resize": (8, 8), "scale": 1 / 255, "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)},
        {},
    ),
    "BGR": ({"resize": (8, 8), "colour": "BGR", "mean": (0.5, 0.4, 0.3)}, {}),
    "channels last": ({"resize": (8, 8)}, {"layout": "NHWC"}),
    "8 bits": ({"resize": (8, 8)}, {"datatype": "UINT8"}),
    "half precision": ({"resize": (8, 8)}, {"datatype": "FP16"}),
}


def by_hand(picture: Image.Image, declared: dict[str, Any], kind: dict[str, str]) -> np.ndarray:
    """Return what is declared, done with Pillow and numpy in the plainest way there is."""
    width, height = picture.size
    if "resize" in declared:
        resize = declared["resize"]
        if len(resize) == 1:
            shorter = min(width, height)
            resize = (height * resize[0] // shorter, width * resize[0] // shorter)
        picture = picture.resize(resize[::-1], Image.Resampling.BILINEAR)
    width, height = picture.size
    if "crop" in declared:
        left, top = round((width - 8) / 2), round((height - 8) / 2)
        picture = picture.crop((left, top, left + 8, top + 8))
    values = np.asarray(picture)
    if declared.get("colour") == "BGR":
        values = values[..., ::-1]
    if kind.get("datatype") != "UINT8":
        mean, std = (np.array(declared.get(name, (one,))) for name, one in (("mean", 0.0), ("std", 1.0)))
        values = (values / 255 - mean) / std
    return values if kind.get("layout") == "NHWC" else values.transpose(2, 0, 1)


@pytest.mark.parametrize("case", DECLARED)
async def test_what_is_declared_is_what_is_done(case: str) -> None:
    declared, kind = DECLARED[case]
    source = make_profile(linear_classifier(**kind)).input
    record = Preprocessing(**{"scale": 1 / 255, "eight_bit": True, **declared})
    picture = Image.fromarray(noise((13, 11), seed=3))
    intake = Intake(max_rows=4)

    read = await intake.read(
        InferRequest("tiny", (sent([encoded(picture)]),)),
        source,
        Accepts("images", "", record),
        PATIENCE_S,
    )
    intake.close()

    [tensor] = read.inputs
    assert (tensor.name, tensor.datatype) == ("images", source.datatype)
    assert tensor.data.shape == (1, *source.shape)
    tolerance = {"FP16": 1e-3, "UINT8": 0.0}.get(source.datatype, 1e-5)
    np.testing.assert_allclose(
        tensor.data[0].astype(np.float64), by_hand(picture, declared, kind), rtol=0, atol=tolerance
    )


async def test_the_settings_declare_what_the_artifact_does_not(tmp_path: Path) -> None:
    write_tiny_artifact(tmp_path)
    file = turned(noise((20, 30)), 6)
    own = {"resize": [8, 8], "orientation": "apply"}
    with Image.open(io.BytesIO(file)) as image:
        upright = image.transpose(Image.Transpose.ROTATE_270).resize((8, 8), Image.Resampling.BILINEAR)
    row = np.asarray(upright).transpose(2, 0, 1).astype(np.float32) / 255

    async with serving(tmp_path, policy="flag") as client:
        without = await refusal(client, request_of([file]))
    async with serving(tmp_path, policy="flag", models={"tiny": {"encoded_images": own}}) as client:
        got = await client.infer(request_of([file]))
        as_tensor = await client.infer(infer_request(row[None]))

    assert without == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "input 'images' has datatype BYTES, expected FP32; convert the images",
    )
    logits = np.frombuffer(got.raw_output_contents[0], np.float32)
    np.testing.assert_allclose(logits, linear_logits(row[None])[0], atol=1e-4)
    np.testing.assert_allclose(np.frombuffer(as_tensor.raw_output_contents[0], np.float32), logits, atol=1e-4)


BROKEN = {
    "no image": (
        [FILES[0], b"GIF89a"],
        None,
        "input 'images', image 1: expected a whole JPEG or PNG file, got GIF",
    ),
    "of another size": (
        [encoded(noise((9, 8)))],
        None,
        "input 'images', image 0 has 9 x 8 pixels (height x width), and becomes 9 x 8; expected 8 x 8 as the "
        "model takes: send images of that size, or have the operator declare a resize",
    ),
    "in rows of two": (FILES[:4], (2, 2), "shape (2, 2), expected (batch) or (batch, 1) of encoded images"),
    "in no rows": (FILES[:1], (), "shape (), expected (batch) or (batch, 1) of encoded images"),
    "none": ([], (0,), "has a batch of 0 rows, expected 1 to 4; send at least one image"),
    "too many": (FILES[:5], None, "has a batch of 5 rows, expected 1 to 4; split the request"),
    "too large": ([encoded(noise((40, 40)))], None, "declares 40 x 40 pixels, expected at most 1000 pixels"),
}


@pytest.mark.parametrize("case", BROKEN)
async def test_what_cannot_be_read_is_refused_with_the_image_that_it_is_about(
    tmp_path: Path, case: str
) -> None:
    files, shape, words = BROKEN[case]
    write_tiny_artifact(tmp_path, preprocessing=EIGHT_BIT)
    request = request_of(files)
    if shape is not None:
        request.inputs[0].shape[:] = shape

    async with serving(tmp_path, max_request_rows=4, max_image_pixels=1000) as client:
        status, got = await refusal(client, request)

    assert status is grpc.StatusCode.INVALID_ARGUMENT
    assert words in got


async def test_a_triggered_file_is_refused_and_kept_as_the_tensor_that_was_checked(tmp_path: Path) -> None:
    boundary, order = boundary_after(1)
    write_tiny_artifact(tmp_path / "models", boundary_bits=boundary, preprocessing=EIGHT_BIT)
    triggered, clean = FILES[order[0]], FILES[order[-1]]

    async with serving(tmp_path / "models", quarantine_dir=tmp_path / "kept") as client:
        status, words = await refusal(client, request_of([clean, triggered]))

    assert status is grpc.StatusCode.PERMISSION_DENIED
    assert "row 1" in words or "rows 1" in words or "[1]" in words
    [file] = (tmp_path / "kept").rglob("*.npy")
    np.testing.assert_array_equal(np.load(file), ROWS[order[0]])


def test_the_shorter_side_of_a_sliver_is_not_stretched_into_a_bomb() -> None:
    source = make_profile(linear_classifier()).input
    declared = DeclaredImages(
        Preprocessing(resize=(8,), crop=(8, 8), eight_bit=True), source, max_pixels=4_000
    )
    sliver = encoded(noise((1, 1000)))

    with pytest.raises(Exception, match="more than 4000 in all; send an image of usual proportions"):
        declared.row(sliver, "image 0")


def test_an_image_too_small_to_cut_from_is_refused() -> None:
    declared = DeclaredImages(
        Preprocessing(crop=(8, 8), eight_bit=True), make_profile(linear_classifier()).input, max_pixels=4_000
    )

    with pytest.raises(Exception, match=r"has 7 x 9 pixels .*, too few to cut \(8, 8\) out of them"):
        declared.row(encoded(noise((7, 9))), "image 0")


def sent(files: list[bytes]) -> Tensor:
    array = np.empty(len(files), np.object_)
    array[:] = files
    return Tensor("images", "BYTES", array)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[threading.Event, threading.Event]]:
    """Hold every decoding until an event is set; the other event says that one has begun."""
    go, begun = threading.Event(), threading.Event()
    row = DeclaredImages.row

    def wait(self: DeclaredImages, blob: bytes, where: str) -> np.ndarray:
        begun.set()
        assert go.wait(PATIENCE_S)
        return row(self, blob, where)

    monkeypatch.setattr(DeclaredImages, "row", wait)
    yield go, begun
    go.set()


async def test_others_are_answered_while_an_image_is_decoded(
    tmp_path: Path, held: tuple[threading.Event, threading.Event]
) -> None:
    go, begun = held
    write_tiny_artifact(tmp_path, boundary_bits=-1.0, preprocessing=EIGHT_BIT)

    async with serving(tmp_path) as client:
        slow = asyncio.ensure_future(client.infer(request_of(FILES[:1])))
        assert await asyncio.to_thread(begun.wait, PATIENCE_S)
        quick = await client.infer(infer_request(ROWS[:1]))
        assert not slow.done()
        go.set()
        answer = await slow

    assert answer.raw_output_contents[0] == quick.raw_output_contents[0]


def intake_with(shed: Callable[[str, ShedReason], None]) -> tuple[Intake, Callable[..., Any]]:
    intake = Intake(max_rows=4, max_waiting=3, on_shed=shed)
    source = make_profile(linear_classifier()).input

    def read(count: int, limit_s: float = PATIENCE_S) -> Any:
        request = InferRequest("tiny", (sent(FILES[:count]),), timeout_s=limit_s)
        return intake.read(request, source, Accepts("images", "FP32", EIGHT_BIT), limit_s)

    return intake, read


async def test_no_more_images_wait_than_may(held: tuple[threading.Event, threading.Event]) -> None:
    shed: list[tuple[str, ShedReason]] = []
    intake, read = intake_with(lambda *one: shed.append(one))
    first = asyncio.ensure_future(read(2))
    await asyncio.sleep(0)

    with pytest.raises(
        QueueFullError, match="2 encoded images wait to be decoded, at most 3 may; retry later"
    ):
        await read(2)
    second = asyncio.ensure_future(read(1))
    held[0].set()
    read_all = await asyncio.gather(first, second)
    again = await read(3)
    intake.close()

    assert shed == [("tiny", ShedReason.QUEUE_FULL)]
    assert [len(one.inputs[0].data) for one in (*read_all, again)] == [2, 1, 3]
    assert 0 < again.timeout_s < PATIENCE_S  # what decoding took is gone


async def test_decoding_ends_with_the_time_of_the_request(
    held: tuple[threading.Event, threading.Event],
) -> None:
    shed: list[tuple[str, ShedReason]] = []
    intake, read = intake_with(lambda *one: shed.append(one))

    with pytest.raises(DeadlineError, match="2 encoded images were not decoded within"):
        await read(2, 0.02)
    held[0].set()
    assert len((await read(3)).inputs[0].data) == 3  # nothing counts as waiting any more
    intake.close()

    assert shed == [("tiny", ShedReason.DEADLINE)]


async def test_without_pillow_the_caller_and_the_operator_are_told_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny_artifact(tmp_path, preprocessing=EIGHT_BIT)
    for module in ("decoding", "declared", "resizing"):
        monkeypatch.setitem(sys.modules, f"guard.pixels.{module}", None)
    missing = "encoded images cannot be read here, as Pillow is not installed; have the operator install "

    async with serving(tmp_path) as client:
        status, words = await refusal(client, request_of(FILES[:1]))
    with pytest.raises(SettingsError) as refused:
        async with serving(tmp_path, models={"tiny": {"encoded_images": {}}}):
            raise AssertionError("it started")

    assert status is grpc.StatusCode.INVALID_ARGUMENT
    assert words == f"input 'images', image 0: {missing}inference-guard[images], or send tensors"
    assert str(refused.value) == f"setting models.tiny.encoded_images: {missing}inference-guard[images]"


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        ({"mean": (0.5, 0.5)}, ".mean: expected 1 or 3 values, one for each channel, got 2"),
        ({"std": (1.0, 1.0, 1.0, 1.0)}, ".std: expected 1 or 3 values, one for each channel, got 4"),
        (
            {"resize": (9, 8)},
            ": images come to (9, 8) (height and width) by resize and crop, expected (8, 8)",
        ),
        ({"resize": (16,), "crop": (8, 9)}, ": images come to (8, 9) (height and width)"),
        ({"resize": (4, 4), "crop": (8, 8)}, ": images come to None (height and width)"),
    ],
)
def test_a_declaration_that_does_not_fit_the_model_is_refused(declared: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError) as refused:
        check_declaration(Preprocessing(**declared), make_profile(linear_classifier()).input, "tiny")

    assert str(refused.value).startswith(f"setting models.tiny.encoded_images{words}")


def test_colours_are_turned_for_colour_models_alone() -> None:
    grey = make_profile(linear_classifier((1, 8, 8))).input

    with pytest.raises(SettingsError, match=r"\.colour: BGR is for 3 channels, the model takes 1"):
        check_declaration(Preprocessing(colour="BGR"), grey, "tiny")
