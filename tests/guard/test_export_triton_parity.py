"""A graph that does not say what the sidecar says is not written: each way to be wrong is noticed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from guard.artifact import Artifact, Profile, read_artifact
from guard.detection.plan import CheckPlan
from guard.detection.strip import Strip
from guard.detection.threshold import Policy
from guard.errors import UnfitModelError
from guard.export.guarded_graph import build_guarded_graph
from guard.export.parity import Parity, check_parity
from guard.runtime.onnx_classifier import OnnxClassifier
from tests.artifacts import write_tiny_artifact
from tests.guard.check_reference import open_classifier
from tests.reference_check import images_and_boundary
from tests.tiny_models import linear_classifier

BOUNDARY = images_and_boundary()[3]
PREFIX = "guard_check/whole/"


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return read_artifact(
        write_tiny_artifact(tmp_path_factory.mktemp("models"), boundary_bits=BOUNDARY, probed=True)
    )


def graph_of(artifact: Artifact, policy: Policy) -> onnx.ModelProto:
    return build_guarded_graph(artifact, policy=policy, overlays_per_pass=4)


def strip_of(profile: Profile) -> Strip:
    return Strip(CheckPlan(profile.check.rounds), profile.boundary.boundary_bits)


def compare(exported: onnx.ModelProto, artifact: Artifact, policy: Policy) -> Parity:
    with open_classifier(artifact.model, artifact.profile) as classifier:
        return check_parity(exported, artifact, classifier, strip_of(artifact.profile), policy)


def body_of(exported: onnx.ModelProto) -> onnx.GraphProto:
    [loop] = [node for node in exported.graph.node if node.op_type == "Loop"]
    return loop.attribute[0].g


def edit(graph: onnx.GraphProto, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    [tensor] = [tensor for tensor in graph.initializer if tensor.name == name]
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), name))


def other_overlays(exported: onnx.ModelProto) -> None:
    edit(body_of(exported), "guard_check/bank", lambda bank: bank * np.float32(0.9))


def one_overlay_less(exported: onnx.ModelProto) -> None:
    edit(
        body_of(exported),
        PREFIX + "body/entropy_weights",
        lambda weights: weights * (np.arange(weights.size) != 1).reshape(weights.shape),
    )


def other_weights(exported: onnx.ModelProto) -> None:
    edit(body_of(exported), "bias", lambda bias: bias + np.arange(10, dtype=np.float32) * np.float32(0.1))


def other_words(exported: onnx.ModelProto) -> None:
    edit(exported.graph, PREFIX + "words", lambda words: words[[0, 0, 0, 3]])


def other_boundary(exported: onnx.ModelProto) -> None:
    edit(exported.graph, PREFIX + "block_boundary", lambda bits: bits + 10.0)


def fewer_clean_images(exported: onnx.ModelProto) -> None:
    edit(exported.graph, PREFIX + "n_clean_plus_1", lambda count: count + np.float32(3))


def a_wider_range(exported: onnx.ModelProto) -> None:
    edit(exported.graph, PREFIX + "above_range", lambda bound: np.full_like(bound, np.inf))


def nothing_withheld(exported: onnx.ModelProto) -> None:
    """The last node casts the answers; let it cast those before they were withheld."""
    exported.graph.node[-1].input[0] = PREFIX + "logits"


def another_answer(exported: onnx.ModelProto) -> None:
    """Swap the classes of what is let through, after the check."""
    exported.graph.initializer.append(numpy_helper.from_array(np.arange(9, -1, -1), "reversed"))
    exported.graph.node[-1].output[0] = "straight"
    exported.graph.node.append(onnx.helper.make_node("Gather", ["straight", "reversed"], ["logits"], axis=1))


def no_loop(exported: onnx.ModelProto) -> None:
    exported.graph.node[-1].op_type = "Nonsense"


@pytest.mark.parametrize("policy", [Policy.ENFORCE, Policy.FLAG])
def test_the_graph_that_is_exported_passes(artifact: Artifact, policy: Policy) -> None:
    parity = compare(graph_of(artifact, policy), artifact, policy)

    assert (parity.images, parity.closed) == (11, 5)
    assert parity.score_difference <= 1e-6
    assert parity.output_difference <= 1e-5


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (other_overlays, r"scores images up to .* off the sidecar's"),
        (one_overlay_less, r"scores images up to .* off the sidecar's"),
        (other_weights, r"scores images up to .* off the sidecar's"),
        (other_words, "says 'accept' of an image that the sidecar says 'reject' of"),
        (other_boundary, "says 'reject' of an image that the sidecar says 'accept' of"),
        (fewer_clean_images, "gives an image the p-value"),
        (a_wider_range, "(accepts|scores) what cannot be checked"),
        (nothing_withheld, "lets through answers to (images that it rejects|what cannot be checked)"),
        (another_answer, "answers otherwise than the bare model, by up to"),
        (no_loop, "the guarded graph cannot be loaded"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_graph_that_says_otherwise_is_refused(
    artifact: Artifact, damage: Callable[[onnx.ModelProto], None], words: str
) -> None:
    exported = graph_of(artifact, Policy.ENFORCE)
    damage(exported)

    with pytest.raises(UnfitModelError, match=words):
        compare(exported, artifact, Policy.ENFORCE)


def in_range(profile: Profile, low: float, high: float) -> Profile:
    spec = profile.input.model_copy(update={"low": (low,), "high": (high,)})
    return profile.model_copy(update={"input": spec})


@pytest.mark.parametrize(("high", "images", "closed"), [(255.0, 16, 0), (100.0, 15, 1)])
def test_a_dtype_without_values_out_of_range_has_none_to_close(
    tmp_path: Path, high: float, images: int, closed: int
) -> None:
    model = linear_classifier(datatype="UINT8")
    artifact = read_artifact(write_tiny_artifact(tmp_path, model=model, boundary_bits=0.0))
    dark = (artifact.overlays * np.float32(high / 255.0)).astype(np.uint8)
    dark[0] = 255  # out of the narrow range: passed over
    artifact = replace(artifact, profile=in_range(artifact.profile, 0.0, high), overlays=dark)

    with OnnxClassifier.open(
        artifact.model,
        source=artifact.profile.input,
        sink=artifact.profile.output,
        fixed_batch=None,
        overlays=artifact.overlays,
        blend=artifact.profile.check.blend_rule,
        threads=1,
    ) as classifier:
        parity = check_parity(
            graph_of(artifact, Policy.FLAG), artifact, classifier, strip_of(artifact.profile), Policy.FLAG
        )

    assert (parity.images, parity.closed) == (images, closed)
