"""``guard export triton``: what it writes, what it refuses to write, and that the sidecar says the same."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import numpy as np
import onnx
import pytest
from google.protobuf import text_format
from onnx import numpy_helper

from guard import cli
from guard.artifact import read_artifact
from guard.detection.threshold import Policy
from guard.errors import ArtifactError, SettingsError
from guard.export.triton import TritonOptions, export_triton
from guard.rpc.pb import open_inference_pb2 as pb
from tests.artifacts import write_tiny_artifact
from tests.guard.guarded_model import Guarded
from tests.reference_check import images_and_boundary
from tests.serving import infer_request, serving
from tests.tiny_models import batch_coupled_classifier, linear_classifier

CLEAN, SUSPICIOUS, MEANS, BOUNDARY = images_and_boundary()
IMAGES = np.concatenate([CLEAN, SUSPICIOUS])


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    return write_tiny_artifact(tmp_path / "models", boundary_bits=BOUNDARY, probed=True)


def export(artifact: Path, out: Path, **options: object) -> Path:
    return export_triton(TritonOptions(artifact, out, **options)).directory  # type: ignore[arg-type]


def load(directory: Path) -> Guarded:
    return Guarded(onnx.load(directory / "model.onnx"))


def config_of(model: Path) -> pb.ModelConfig:
    return text_format.Parse((model / "config.pbtxt").read_text(), pb.ModelConfig())


# What the sidecar says


async def test_every_row_gets_the_verdict_score_and_answer_that_a_running_guard_gives(
    artifact: Path, tmp_path: Path
) -> None:
    answer = load(export(artifact, tmp_path / "triton", policy=Policy.FLAG))(IMAGES)
    request = infer_request(IMAGES)
    for name in ("logits", "guard_verdict", "guard_score", "guard_p_value", "guard_passes"):
        request.outputs.add(name=name)
    async with serving(artifact.parent.parent, policy="flag") as client:
        served = await client.infer(request)

    logits, verdicts, scores, p_values, passes = served.raw_output_contents
    words = answer.verdicts
    assert words == ["accept"] * len(CLEAN) + ["flag"] * len(SUSPICIOUS)
    assert verdicts == b"".join(len(word).to_bytes(4, "little") + word.encode() for word in words)
    np.testing.assert_allclose(
        answer.outputs, np.frombuffer(logits, "<f4").reshape(answer.outputs.shape), atol=1e-5
    )
    full = np.frombuffer(passes, "<i4") == 8  # the sidecar's score is exact where nothing was curtailed
    assert full.sum() >= len(SUSPICIOUS)
    np.testing.assert_allclose(answer.scores[full], np.frombuffer(scores, "<f4")[full], atol=1e-5)
    np.testing.assert_allclose(answer.p_values[full], np.frombuffer(p_values, "<f4")[full], rtol=1e-6)
    np.testing.assert_allclose(answer.scores, -MEANS, atol=1e-5)


async def test_what_a_running_guard_refuses_under_enforce_gets_no_answer(
    artifact: Path, tmp_path: Path
) -> None:
    broken = CLEAN[:1].copy()
    broken[0, 0, 0, 0] = np.nan
    images = [CLEAN[:1], SUSPICIOUS[:1], broken, CLEAN[:1] + 2.0]
    exported = load(export(artifact, tmp_path / "triton"))
    async with serving(artifact.parent.parent) as client:
        assert (await client.infer(infer_request(images[0]))).parameters[
            "guard_verdict"
        ].string_param == "accept"
        for image in images[1:]:
            await client.refusal(infer_request(image))

    said = [exported(image) for image in images]
    assert [answer.verdicts for answer in said] == [["accept"], ["reject"], ["reject"], ["reject"]]
    assert [bool(np.isnan(answer.outputs).all()) for answer in said] == [False, True, True, True]


# What is written


def test_a_version_holds_the_graph_and_where_it_came_from(artifact: Path, tmp_path: Path) -> None:
    exported = export_triton(TritonOptions(artifact, tmp_path / "triton"))

    assert exported.directory == tmp_path / "triton" / "tiny" / "1"
    assert sorted(path.name for path in exported.directory.iterdir()) == ["guard.json", "model.onnx"]
    record = json.loads((exported.directory / "guard.json").read_text())
    source = read_artifact(artifact)
    assert record["artifact_sha256"] == source.digest
    assert record["model_sha256"] == source.profile.model_sha256
    assert (record["policy"], record["n_overlays"], record["boundary_bits"]) == ("enforce", 8, BOUNDARY)
    assert (record["detector"], record["block_boundary_bits"]) == ("strip", None)
    assert record["score"] == "minus the mean entropy, bits"
    assert record["compared_with_the_sidecar"]["images"] == exported.parity.images == 3 + 8
    assert 0.0 <= exported.parity.score_difference <= 1e-5
    assert exported.parity.closed == 5


def test_the_configuration_is_what_triton_expects(artifact: Path, tmp_path: Path) -> None:
    export(artifact, tmp_path, max_batch_size=16)

    assert config_of(tmp_path / "tiny") == text_format.Parse(
        """
        name: "tiny" backend: "onnxruntime" max_batch_size: 16
        input { name: "images" data_type: TYPE_FP32 format: FORMAT_NCHW dims: [3, 8, 8] }
        output { name: "logits" data_type: TYPE_FP32 dims: [10] }
        output { name: "guard_score" data_type: TYPE_FP32 dims: [1] }
        output { name: "guard_verdict" data_type: TYPE_STRING dims: [1] }
        output { name: "guard_p_value" data_type: TYPE_FP32 dims: [1] }
        dynamic_batching { max_queue_delay_microseconds: 500 }
        instance_group { count: 1 }
        """,
        pb.ModelConfig(),
    )


@pytest.mark.parametrize(("datatype", "answer"), [("UINT8", pb.TYPE_FP32), ("FP16", pb.TYPE_FP16)])
def test_a_fixed_batch_is_part_of_the_shape_and_never_batched(
    tmp_path: Path, datatype: str, answer: int
) -> None:
    model = linear_classifier(layout="NHWC", datatype=datatype, batch=4, softmax=True)
    artifact = write_tiny_artifact(tmp_path / "models", model=model, kind="probabilities")
    directory = export(artifact, tmp_path / "triton", name="quartet")

    config = config_of(directory.parent)
    assert (config.name, config.max_batch_size) == ("quartet", 0)
    assert not config.HasField("dynamic_batching")
    assert config.input[0].data_type == getattr(pb, f"TYPE_{datatype}")
    assert (list(config.input[0].dims), config.input[0].format) == ([4, 8, 8, 3], pb.ModelInput.FORMAT_NONE)
    assert config.output[0].data_type == answer
    assert [list(output.dims) for output in config.output] == [[4, 10], [4, 1], [4, 1], [4, 1]]


def test_overlays_are_kept_from_others_whatever_the_umask(artifact: Path, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        directory = export(artifact, tmp_path / "triton", backend="python")
    finally:
        os.umask(before)

    files = [*directory.iterdir(), directory.parent / "config.pbtxt", directory.parent / "README.txt"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o640}
    assert stat.S_IMODE(directory.stat().st_mode) == 0o750
    assert sorted(path.name for path in directory.parent.iterdir()) == ["1", "README.txt", "config.pbtxt"]


def test_the_readme_names_the_tensors_and_tells_what_it_costs(artifact: Path, tmp_path: Path) -> None:
    export(artifact, tmp_path)
    export(artifact, tmp_path, name="other", backend="python")

    text, other = ((tmp_path / name / "README.txt").read_text() for name in ("tiny", "other"))
    for said in ("FP32, (batch, 3, 8, 8)", "FP32, 10 logits", "costs 9 passes", "NVIDIA_TF32_OVERRIDE=0"):
        assert said in text
    assert "{" not in text.replace("{name}", "{")
    assert "model.py runs the graph" in other
    assert max(map(len, text.splitlines())) <= 115


# What is refused, and what is not


def test_a_model_that_rules_out_a_class_for_good_is_exported(tmp_path: Path) -> None:
    model = linear_classifier()
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "bias")
    ruled_out = numpy_helper.to_array(bias).copy()
    ruled_out[3] = -np.inf
    bias.CopyFrom(numpy_helper.from_array(ruled_out, "bias"))
    artifact = write_tiny_artifact(tmp_path / "models", model=model, boundary_bits=0.0)

    answer = load(export(artifact, tmp_path / "triton"))(CLEAN)

    assert answer.verdicts == ["accept"] * len(CLEAN)
    assert np.isneginf(answer.outputs[:, 3]).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "../up"}, "name '../up' cannot be a model's in Triton"),
        ({"name": ".hidden"}, "name '.hidden' cannot be"),
        ({"max_batch_size": 0}, "--max-batch-size is 0, expected at least 1"),
        ({"max_batch_pairs": -1}, "--max-batch-pairs is -1, expected at least 1"),
        ({"policy": Policy.MONITOR}, "policy 'monitor' has no meaning in one graph"),
    ],
)
def test_an_option_out_of_its_range_is_refused(
    artifact: Path, tmp_path: Path, options: dict[str, object], words: str
) -> None:
    with pytest.raises(SettingsError, match=words):
        export(artifact, tmp_path / "triton", **options)

    assert not (tmp_path / "triton").exists()


def test_a_model_that_the_guard_would_not_serve_is_not_exported(tmp_path: Path) -> None:
    artifact = write_tiny_artifact(tmp_path / "models", model=batch_coupled_classifier())

    with pytest.raises(ArtifactError, match="answers an image differently in another batch"):
        export(artifact, tmp_path / "triton")

    assert not (tmp_path / "triton").exists()


def test_a_folder_that_cannot_be_written_is_told(artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")

    with pytest.raises(ArtifactError, match=r"file.tiny.*check --out"):
        export(artifact, tmp_path / "file")


# The command


def test_the_command_exports_and_says_what_was_compared(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = cli.main(["export", "triton", str(artifact), "--out", str(tmp_path / "t"), "--policy", "flag"])

    lines = capsys.readouterr().out.splitlines()
    assert (code, lines[0]) == (0, f"{tmp_path}/t/tiny/1: written")
    assert lines[1] == "  compared  11 images with the sidecar and the bare model"
    assert " bits, answers within" in lines[2]
    assert lines[4] == "  costs     9 passes of the model an image"
    assert load(tmp_path / "t" / "tiny" / "1")(SUSPICIOUS).verdicts == ["flag", "flag"]


def test_the_command_tells_a_damaged_artifact_in_one_line(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (artifact / "overlays.npy").unlink()

    code = cli.main(["export", "triton", str(artifact), "--out", str(tmp_path / "t")])

    said = capsys.readouterr()
    assert (code, said.out, said.err.count("\n")) == (2, "", 1)
    assert "overlays.npy is missing" in said.err
