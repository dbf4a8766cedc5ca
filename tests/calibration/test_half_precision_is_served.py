"""Models that take and give FP16 or BF16: calibrated, written, served and called in those datatypes."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes  # onnx brings it; the guard itself does without
import numpy as np
import onnx
import pytest

from calibration.calibrate import calibrate
from guard.artifact import read_artifact
from guard.rpc.pb import open_inference_pb2 as pb
from tests.calibration.calibration_subjects import linear_logits, model_rows, options_for, pixels
from tests.serving import serving
from tests.tiny_models import bfloat16_classifier, linear_classifier

WIRE = {"FP16": np.dtype("<f2"), "BF16": np.dtype(ml_dtypes.bfloat16)}
MODELS = {
    "FP16": linear_classifier(gain=0.5, datatype="FP16"),
    "BF16": bfloat16_classifier(gain=0.5),
    "BF16, batches of 4": bfloat16_classifier(gain=0.5, batch=4),
}
ROUNDING = {"FP16": 2e-2, "BF16": 1e-1}
"""Of answers: 11 and 8 bits of values up to about 8."""


@pytest.fixture(autouse=True)
def without_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("calibration.calibrate.entropy_picture", lambda *_: b"a picture")


@pytest.mark.parametrize("case", MODELS)
async def test_half_precision_goes_from_calibration_to_the_client(tmp_path: Path, case: str) -> None:
    datatype = case[:4]
    report = calibrate(options_for(tmp_path, MODELS[case], frr=0.05))
    artifact = read_artifact(report.artifact)
    assert (artifact.profile.input.datatype, artifact.profile.output.datatype) == (datatype, datatype)
    unit = pixels()[report.findings.split.calibration][:6].transpose(0, 3, 1, 2) / np.float32(255)
    images = unit.astype(WIRE[datatype])

    async with serving(tmp_path / "repository", policy="flag") as client:
        described = await client.stub.ModelMetadata(pb.ModelMetadataRequest(name="tiny"))
        answer = await client.infer(request_of(images, datatype))

    assert (described.inputs[0].datatype, described.outputs[0].datatype) == (datatype, datatype)
    got = np.frombuffer(answer.raw_output_contents[0], WIRE[datatype]).reshape(answer.outputs[0].shape)
    np.testing.assert_allclose(
        got.astype(np.float32), linear_logits(images.astype(np.float32)), rtol=1e-2, atol=ROUNDING[datatype]
    )
    scores = np.frombuffer(answer.raw_output_contents[1], np.float32)
    passes = np.frombuffer(answer.raw_output_contents[2], np.int32)
    whole = passes == artifact.profile.check.n_overlays
    known = np.array(artifact.profile.calibration.clean_entropies_bits)
    assert whole.any()
    for score in scores[whole]:
        assert np.abs(known + score).min() < 1e-6  # each is the score of an image of the calibration


def test_what_bfloat16_calibrates_with_are_its_own_values(tmp_path: Path) -> None:
    artifact = read_artifact(calibrate(options_for(tmp_path, bfloat16_classifier(gain=0.5))).artifact)

    overlays = artifact.overlays
    assert overlays.dtype == np.float32
    np.testing.assert_array_equal(overlays, overlays.astype(ml_dtypes.bfloat16).astype(np.float32))
    stored = model_rows(artifact, pixels()).astype(ml_dtypes.bfloat16).astype(np.float32)
    assert {row.tobytes() for row in overlays} <= {row.tobytes() for row in stored}


def test_bfloat16_without_classes_in_its_graph_is_asked_for_them(tmp_path: Path) -> None:
    model = bfloat16_classifier(gain=0.5)
    del model.graph.output[0].type.tensor_type.shape.dim[1]
    model.graph.output[0].type.tensor_type.shape.dim.add(dim_param="k")

    profile = read_artifact(calibrate(options_for(tmp_path, model)).artifact).profile

    assert profile.output.classes == 10


def request_of(images: np.ndarray, datatype: str) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="tiny", raw_input_contents=[images.tobytes()])
    request.inputs.add(name="images", datatype=datatype, shape=images.shape)
    for name in ("logits", "guard_score", "guard_passes"):
        request.outputs.add(name=name)
    return request


def test_an_onnx_file_of_bfloat16_is_what_it_says() -> None:
    graph = MODELS["BF16"].graph
    assert graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.BFLOAT16
    assert graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.BFLOAT16
