"""``guard export triton`` of a model with the fused detector: it says what serves, in its own units."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from guard import cli
from guard.artifact import Artifact, read_artifact
from guard.detection.threshold import Policy
from guard.errors import UnfitModelError
from guard.export.guarded_graph import build_guarded_graph
from guard.export.parity import check_parity
from guard.export.triton import TritonOptions, export_triton
from guard.runtime.score_shift import full_scores
from tests.artifacts import random_images
from tests.guard.artifact_edits import replace_file
from tests.guard.check_reference import open_classifier
from tests.guard.fused_subjects import detector_of, fitted, write_fused_artifact
from tests.guard.guarded_model import Guarded
from tests.serving import infer_request, serving
from tests.tiny_models import linear_classifier

MODEL = linear_classifier((3, 6, 7), gain=0.3)
BODY = "guard_check/whole/body/"
PREFIX = "guard_check/whole/"


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return random_images(fitted(MODEL)[0], 9)


@pytest.fixture(scope="module")
def scores(images: np.ndarray) -> np.ndarray:
    profile, measures = fitted(MODEL)
    with open_classifier(MODEL, profile) as classifier:
        return full_scores(classifier, detector_of(profile, measures), images, max_pairs=64)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory, scores: np.ndarray) -> Path:
    """Boundaries that three of the nine images are below, between and above."""
    low, high = (float(np.sort(scores)[at : at + 2].mean()) for at in (2, 5))
    return write_fused_artifact(tmp_path_factory.mktemp("models"), MODEL, boundaries=(low, high))


def exported(artifact: Path, out: Path, policy: Policy) -> Guarded:
    directory = export_triton(TritonOptions(artifact, out, policy=policy)).directory
    return Guarded(onnx.load(directory / "model.onnx"))


# What the sidecar says


async def test_every_row_gets_the_verdict_and_the_score_that_a_running_guard_gives(
    artifact: Path, tmp_path: Path, images: np.ndarray, scores: np.ndarray
) -> None:
    answer = exported(artifact, tmp_path, Policy.FLAG)(images)
    request = infer_request(images, model="fused")
    for name in ("logits", "guard_verdict", "guard_score", "guard_p_value", "guard_passes"):
        request.outputs.add(name=name)
    async with serving(artifact.parent.parent, policy="flag") as client:
        served = await client.infer(request)

    _, verdicts, served_scores, p_values, passes = served.raw_output_contents
    assert verdicts == b"".join(len(word).to_bytes(4, "little") + word.encode() for word in answer.verdicts)
    assert sorted(answer.verdicts) == ["accept"] * 3 + ["flag"] * 6
    full = np.frombuffer(passes, "<i4") == 8  # the others were rejected early, by what is certain
    assert full.sum() >= 6
    np.testing.assert_allclose(answer.scores[full], np.frombuffer(served_scores, "<f4")[full], atol=1e-4)
    np.testing.assert_allclose(answer.p_values[full], np.frombuffer(p_values, "<f4")[full], rtol=1e-6)
    np.testing.assert_allclose(answer.scores, scores, atol=1e-4)


async def test_under_enforce_what_is_between_the_boundaries_is_answered_as_a_running_guard_does(
    artifact: Path, tmp_path: Path, images: np.ndarray
) -> None:
    graph = exported(artifact, tmp_path, Policy.ENFORCE)
    said = [graph(image[None]).verdicts[0] for image in images]
    assert sorted(said) == ["accept"] * 3 + ["flag"] * 3 + ["reject"] * 3
    async with serving(artifact.parent.parent) as client:
        for image, word in zip(images, said, strict=True):
            request = infer_request(image[None], model="fused")
            if word == "reject":
                await client.refusal(request)
            else:
                served = await client.infer(request)
                assert served.parameters["guard_verdict"].string_param == word


# What is written


def test_the_record_tells_detector_boundaries_and_unit(artifact: Path, tmp_path: Path) -> None:
    done = export_triton(TritonOptions(artifact, tmp_path))

    record = json.loads((done.directory / "guard.json").read_text())
    fused = read_artifact(artifact).profile.fused
    assert fused is not None
    assert fused.block is not None
    assert (record["detector"], record["certified_frr"]) == ("fused", fused.boundary.certified_frr)
    assert (record["boundary"], record["block_boundary"]) == (fused.boundary.boundary, fused.block.boundary)
    assert record["statistics"] == list(fused.statistics)
    assert "boundary_bits" not in record
    assert "0 the median of clean images" in record["score"]
    text = (done.directory.parent / "README.txt").read_text()
    assert "some of which may be flagged or rejected\n  here" in text
    assert max(map(len, text.splitlines())) <= 115


def test_the_command_gives_no_bits_for_a_score_without_a_unit(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["export", "triton", str(artifact), "--out", str(tmp_path / "t")]) == 0

    said = capsys.readouterr().out
    assert "scores within" in said
    assert " bits," not in said


def test_another_precision_than_the_graphs_own_is_refused(tmp_path: Path) -> None:
    artifact = write_fused_artifact(tmp_path / "models", MODEL)
    profile = json.loads((artifact / "profile.json").read_text())
    profile["check"]["precision"] = "fp16"
    replace_file(artifact, "profile.json", json.dumps(profile).encode())

    with pytest.raises(UnfitModelError, match=r"in precision 'fp16'.*--precision exact"):
        export_triton(TritonOptions(artifact, tmp_path / "triton"))

    assert not (tmp_path / "triton").exists()


# A graph that does not say what the sidecar says


def tensor(graph: onnx.GraphProto, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    [found] = [one for one in graph.initializer if one.name == name]
    found.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(found)), name))


def body_of(model: onnx.ModelProto) -> onnx.GraphProto:
    [loop] = [node for node in model.graph.node if node.op_type == "Loop"]
    return loop.attribute[0].g


def another_table(model: onnx.ModelProto) -> None:
    tensor(body_of(model), BODY + "expected", lambda rows: np.roll(rows, 1, axis=1))


def overlays_in_another_order(model: onnx.ModelProto) -> None:
    tensor(body_of(model), BODY + "expected", lambda rows: np.roll(rows, 1, axis=0))


def a_stratum_less(model: onnx.ModelProto) -> None:
    tensor(body_of(model), BODY + "strata_weights", lambda weights: weights * 0.5)


def other_scales(model: onnx.ModelProto) -> None:
    tensor(model.graph, PREFIX + "scales", lambda scales: scales * 1.01)


def block_at_the_first_boundary(model: onnx.ModelProto) -> None:
    tensor(model.graph, PREFIX + "block_boundary", lambda _: np.array(1e15))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (another_table, "scores images up to .* off the sidecar's"),
        (overlays_in_another_order, "scores images up to .* off the sidecar's"),
        (a_stratum_less, "scores images up to .* off the sidecar's"),
        (other_scales, "scores images up to .* off the sidecar's"),
        (block_at_the_first_boundary, "says 'reject' of an image that the sidecar says '(accept|flag)' of"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_graph_that_says_otherwise_is_refused(
    artifact: Path, damage: Callable[[onnx.ModelProto], None], words: str
) -> None:
    source = read_artifact(artifact)
    model = build_guarded_graph(source, policy=Policy.ENFORCE, overlays_per_pass=4)
    compare(model, source)
    damage(model)

    with pytest.raises(UnfitModelError, match=words):
        compare(model, source)


def compare(model: onnx.ModelProto, source: Artifact) -> None:
    assert source.measures is not None
    detector = detector_of(source.profile, source.measures)
    with open_classifier(source.model, source.profile) as classifier:
        parity = check_parity(model, source, classifier, detector, Policy.ENFORCE)
    assert (parity.images, parity.closed) == (16, 5)
    assert parity.score_difference <= 1e-4
