"""Model servers whose input is not the artifact's: of half precision, or of encoded images."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path
from typing import Any

import grpc
import ml_dtypes  # onnx brings it; the guard itself does without
import numpy as np
import pytest
from PIL import Image, ImageOps
from upstream_house import BOUNDARY, CLEAN, SUSPICIOUS, in_front_of, refused, sent, tiny_repository

from guard.artifact import Preprocessing
from guard.rpc.pb import open_inference_pb2 as pb
from tests.artifacts import make_profile, probe_of, random_images, write_tiny_artifact
from tests.guard.image_files import encoded, noise, turned, wire
from tests.model_server import ModelServer
from tests.reference_check import linear_logits
from tests.serving import PATIENCE_S, Client, infer_request, serving
from tests.tiny_models import linear_classifier

WIRE = {"FP16": np.dtype("<f2"), "BF16": np.dtype(ml_dtypes.bfloat16)}


class HalfServer(ModelServer):
    """Takes and gives its tensors in half precision, and computes in float32."""

    def __init__(self, datatype: str) -> None:
        super().__init__(linear_classifier())
        self.datatype = datatype

    async def _metadata(self, message: bytes, context: Any) -> bytes:
        said = pb.ModelMetadataResponse.FromString(await super()._metadata(message, context))
        for tensor in (*said.inputs, *said.outputs):
            tensor.datatype = self.datatype
        return said.SerializeToString()

    def _run(self, request: pb.ModelInferRequest) -> pb.ModelInferResponse:
        assert request.inputs[0].datatype == self.datatype
        images = np.frombuffer(request.raw_input_contents[0], WIRE[self.datatype]).astype("<f4")
        request.raw_input_contents[0] = images.tobytes()
        answer = super()._run(request)
        logits = np.frombuffer(answer.raw_output_contents[0], "<f4").astype(WIRE[self.datatype])
        answer.raw_output_contents[0] = logits.tobytes()
        answer.outputs[0].datatype = self.datatype
        return answer


class ImageServer(ModelServer):
    """Takes encoded images at an input of its own, as an ensemble that decodes them does."""

    filter = Image.Resampling.BILINEAR

    def __init__(self, shape: tuple[int, ...] = (-1, 1), *, resize: int = 8, name: str = "file") -> None:
        super().__init__(linear_classifier())
        self.shape, self.resize, self.input_name = shape, resize, name

    async def _metadata(self, message: bytes, context: Any) -> bytes:
        said = pb.ModelMetadataResponse.FromString(await super()._metadata(message, context))
        del said.inputs[:]
        said.inputs.add(name=self.input_name, datatype="BYTES", shape=self.shape)
        return said.SerializeToString()

    def _opened(self, file: bytes) -> Image.Image:
        return Image.open(io.BytesIO(file))

    def _run(self, request: pb.ModelInferRequest) -> pb.ModelInferResponse:
        tensor, raw = request.inputs[0], request.raw_input_contents[0]
        assert (tensor.name, tensor.datatype) == (self.input_name, "BYTES")
        assert len(tensor.shape) == len(self.shape)
        rows = []
        while raw:
            end = 4 + int.from_bytes(raw[:4], "little")
            with self._opened(raw[4:end]) as image:
                whole = image.resize((self.resize, self.resize), self.filter)
                rows.append(np.asarray(whole.resize((8, 8), Image.Resampling.BILINEAR)).transpose(2, 0, 1))
            raw = raw[end:]
        images = np.stack(rows).astype(np.float32) / 255
        plain = infer_request(images, id=request.id)
        return super()._run(plain)


@pytest.mark.parametrize("check", ["local", "upstream"])
@pytest.mark.parametrize("datatype", WIRE)
async def test_half_precision_goes_on_as_it_came_and_is_checked_in_full(
    tmp_path: Path, datatype: str, check: str
) -> None:
    repository = tiny_repository(tmp_path)
    images = np.concatenate([CLEAN[:2], SUSPICIOUS[:1]]).astype(WIRE[datatype])
    request = sent(images.astype(np.float32))
    request.inputs[0].datatype = datatype
    request.raw_input_contents[0] = images.tobytes()
    for name in ("logits", "guard_verdict"):
        request.outputs.add(name=name)

    async with HalfServer(datatype) as server:
        own = {"upstream_check": check, "policy": "flag"}
        async with in_front_of(server, repository, own=own) as client:
            answer = await client.infer(request)  # which waits for the server
            described = await client.stub.ModelMetadata(pb.ModelMetadataRequest(name="tiny"))
            plain = await refused(client, sent(CLEAN[:1]))
            typed = await refused(client, typed_half(datatype))

    assert described.inputs[0].datatype == datatype
    assert server.predictions[0].request.raw_input_contents[0] == images.tobytes()
    assert (answer.outputs[0].name, answer.outputs[0].datatype) == ("logits", datatype)
    assert answer.raw_output_contents[1] == wire([b"accept", b"accept", b"flag"])
    assert plain.details() == f"input 'images' has datatype FP32, expected {datatype}; convert the images"
    assert f"{datatype} travels only in raw_input_contents" in typed.details()
    assert len(server.predictions) == 1


def typed_half(datatype: str) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="tiny", id="typed")
    tensor = request.inputs.add(name="images", datatype=datatype, shape=[1, 3, 8, 8])
    tensor.contents.fp32_contents.extend([0.5] * 192)
    return request


def eight_bit_repository(folder: Path) -> Path:
    """Return a repository whose probe is of 8-bit images, as a calibration with files makes it."""
    model = linear_classifier()
    record = Preprocessing(scale=1 / 255, eight_bit=True)
    profile = make_profile(model, preprocessing=record)
    overlays = random_images(profile, profile.check.n_overlays, seed=99)
    assert probe_of(model, profile, overlays).images.shape == (3, 3, 8, 8)
    write_tiny_artifact(folder, boundary_bits=BOUNDARY, probed=True, preprocessing=record)
    return folder


def files_request(files: list[bytes], name: str = "file", **fields: Any) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="tiny", **{"id": "an id", **fields})
    request.inputs.add(name=name, datatype="BYTES", shape=[len(files), 1])
    request.raw_input_contents.append(wire(files))
    return request


@pytest.mark.parametrize("shape", [(-1, 1), (-1,)], ids=["[n, 1]", "[n]"])
async def test_encoded_images_go_on_as_they_came_and_are_checked_decoded(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    files = [encoded(noise(seed=seed)) for seed in range(3)]
    request = files_request(files)
    request.inputs[0].shape[:] = [3, 1][: len(shape)]

    async with ImageServer(shape) as server:
        own = {"encoded_images": {"input": "file", "resize": [8, 8]}, "policy": "flag"}
        async with in_front_of(server, eight_bit_repository(tmp_path), own=own) as client:
            answer = await client.infer(request)  # which waits for the server
            described = await client.stub.ModelMetadata(pb.ModelMetadataRequest(name="tiny"))
            tensor = await refused(client, sent(CLEAN[:1]))
            other = await refused(client, files_request(files, "images"))
            alpha = await refused(client, files_request([encoded(noise((8, 8), 4))]))
            no_image = await refused(client, files_request([files[0], b"no image"]))

    assert (described.inputs[0].name, described.inputs[0].datatype) == ("file", "BYTES")
    assert server.predictions[0].message == request.SerializeToString()
    assert answer.parameters["guard_passes"].int64_param > 0
    assert answer.parameters["guard_verdict"].string_param in {"accept", "flag"}
    assert "takes exactly one input, 'file', got 'images'" in tensor.details()
    assert "takes exactly one input, 'file', got 'images'" in other.details()
    assert "image 0 is an image with transparency, which programs decode differently" in alpha.details()
    assert "input 'file', image 1: expected a whole JPEG or PNG file" in no_image.details()
    assert len(server.predictions) == 1


async def told(client: Client, request: pb.ModelInferRequest, words: str) -> grpc.aio.AioRpcError:
    """Ask until a request is refused with these words; until it was seen the server is merely away."""
    async with asyncio.timeout(PATIENCE_S):
        while words not in (error := await refused(client, request)).details():
            pass
    return error


async def test_a_server_that_decodes_otherwise_than_declared_gets_no_request(tmp_path: Path) -> None:
    async with ImageServer(resize=3) as server:
        own = {"encoded_images": {"input": "file", "resize": [8, 8]}}
        quick = {"own": own, "upstream_wait_s": 0.2}
        async with in_front_of(server, eight_bit_repository(tmp_path), **quick) as client:
            error = await told(
                client, files_request([encoded(noise())]), "otherwise than encoded_images declares"
            )

    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert "compare resize, crop, scale, mean, std, colour and input" in error.details()
    assert server.predictions == []


class TurningServer(ImageServer):
    """Turns images as EXIF says, as OpenCV and DALI do unless they are told not to."""

    def _opened(self, file: bytes) -> Image.Image:
        return ImageOps.exif_transpose(super()._opened(file))


class SubsamplingServer(ImageServer):
    """Leaves pixels out where images become smaller."""

    filter = Image.Resampling.NEAREST


@pytest.mark.parametrize(
    ("server", "declared", "words"),
    [
        (TurningServer(), {}, "JPEG files that EXIF has turned are read in another way there"),
        (ImageServer(), {"orientation": "apply"}, "JPEG files that EXIF has turned are read in another way"),
        (SubsamplingServer(), {"resize": [8, 8]}, "PNG files that become smaller are read in another way"),
    ],
    ids=["turns", "does not turn", "leaves pixels out"],
)
async def test_a_server_that_reads_files_otherwise_of_which_calibration_had_none_gets_no_request(
    tmp_path: Path, server: ImageServer, declared: dict[str, Any], words: str
) -> None:
    async with server:
        quick = {"own": {"encoded_images": {"input": "file", **declared}}, "upstream_wait_s": 0.2}
        async with in_front_of(server, eight_bit_repository(tmp_path), **quick) as client:
            error = await told(client, files_request([encoded(noise())]), words)

    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert server.predictions == []


async def test_a_server_that_turns_images_is_asked_where_that_is_declared(tmp_path: Path) -> None:
    async with TurningServer() as server:
        own = {"encoded_images": {"input": "file", "resize": [8, 8], "orientation": "apply"}}
        own |= {"policy": "flag"}
        async with in_front_of(server, eight_bit_repository(tmp_path), own=own) as client:
            await client.infer(files_request([turned(noise((40, 40)), 6)]))

    assert len(server.predictions) == 1


async def test_a_server_of_encoded_images_that_nobody_declared_gets_no_request(tmp_path: Path) -> None:
    async with ImageServer() as server:
        quick = {"upstream_wait_s": 0.2}
        async with in_front_of(server, eight_bit_repository(tmp_path), **quick) as client:
            error = await refused(client, files_request([encoded(noise())], "images"))

    assert "input 'images' has datatype BYTES, expected FP32" in error.details()
    assert server.predictions == []


async def test_a_server_of_encoded_images_that_nobody_declared_is_no_server_of_tensors(
    tmp_path: Path,
) -> None:
    async with ImageServer(name="images") as server:
        quick = {"upstream_wait_s": 0.2}
        async with in_front_of(server, eight_bit_repository(tmp_path), **quick) as client:
            error = await refused(client, sent(CLEAN[:1]))

    assert "takes [('images', 'BYTES')], expected [('images', 'FP32')] as calibrated" in error.details()
    assert server.predictions == []


async def test_a_server_of_tensors_that_is_declared_to_take_files_is_told_by_the_setting(
    tmp_path: Path,
) -> None:
    quick = {"upstream_wait_s": 0.2}
    async with (
        ModelServer(linear_classifier()) as server,
        in_front_of(server, eight_bit_repository(tmp_path), own={"encoded_images": {}}, **quick) as client,
    ):
        error = await refused(client, files_request([encoded(noise((8, 8)))], "images"))

    assert "expected [('images', 'BYTES')] as encoded_images says; leave that out" in error.details()
    assert server.predictions == []


async def test_a_server_of_tensors_is_sent_no_encoded_images(tmp_path: Path) -> None:
    async with (
        ModelServer(linear_classifier()) as server,
        in_front_of(server, eight_bit_repository(tmp_path)) as client,
    ):
        error = await refused(client, files_request([encoded(noise())], "images"))

    assert error.details() == "input 'images' has datatype BYTES, expected FP32; convert the images"
    assert server.predictions == []


async def test_classification_is_the_servers_to_give(tmp_path: Path) -> None:
    request = sent(CLEAN[:2])
    request.outputs.add(name="logits").parameters["classification"].int64_param = 3
    async with (
        ModelServer(linear_classifier()) as server,
        in_front_of(server, tiny_repository(tmp_path)) as client,
    ):
        await client.infer(request)
        request.outputs[0].parameters["rounding"].int64_param = 3
        other = await refused(client, request)
        request = sent(CLEAN[:1])
        request.outputs.add(name="guard_score").parameters["classification"].int64_param = 3
        ours = await refused(client, request)

    assert server.predictions[0].request.outputs[0].parameters["classification"].int64_param == 3
    assert other.details() == "output 'logits': parameters 'rounding' are not supported; send it without them"
    assert "holds no class scores" in ours.details()
    assert len(server.predictions) == 1


async def test_encoded_images_that_are_not_drawn_go_on_unread(tmp_path: Path) -> None:
    request = files_request([b"whatever it is"])
    async with ImageServer() as server:
        server.raw = pb.ModelInferResponse(model_name="tiny", model_version="1").SerializeToString()
        own = {"encoded_images": {"input": "file"}, "policy": "monitor", "sampling": 0.0}
        async with in_front_of(server, eight_bit_repository(tmp_path), own=own) as client:
            answer = await client.infer(request)
            other = await refused(client, files_request([b"whatever it is"], "images"))

    assert answer.parameters["guard_verdict"].string_param == "unchecked"
    assert [call.message for call in server.predictions] == [request.SerializeToString()]
    assert "takes exactly one input, 'file', got 'images'" in other.details()


async def test_a_candidate_reads_encoded_images_as_its_own_artifact_says(tmp_path: Path) -> None:
    files, rows = [encoded(noise(seed=4))], noise(seed=4).transpose(2, 0, 1)[None].astype(np.float32)
    for scale in (1 / 255, 1 / 510):
        record = Preprocessing(scale=scale, eight_bit=True)
        write_tiny_artifact(tmp_path, boundary_bits=-1.0, preprocessing=record)

    async with serving(tmp_path) as client:
        await client.server.control.start_canary("tiny", "1", share=0.5, actor="test")
        answers = {}
        for version in ("1", "2"):
            answers[version] = await client.infer(files_request(files, "images", model_version=version))

    for version, scale in (("1", 1 / 255), ("2", 1 / 510)):
        logits = np.frombuffer(answers[version].raw_output_contents[0], np.float32)
        np.testing.assert_allclose(logits, linear_logits(rows * np.float32(scale))[0], atol=1e-4)
