"""The guarded graph says what the sidecar's check says, and lets nothing through that it did not check."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from guard.artifact import Profile
from guard.detection.p_values import p_value
from guard.detection.strip import mean_entropies
from guard.detection.superimpose import BLEND_RULES, superimpose
from guard.detection.threshold import Policy
from guard.errors import UnfitModelError
from guard.export.parts import Parts
from guard.runtime.check_graph import build_check_graph
from guard.runtime.probing import take_probe
from tests.artifacts import make_profile, random_images
from tests.guard.check_reference import bare_outputs, open_classifier, overlays_of, reference_entropy
from tests.guard.guarded_model import Guarded, guarded
from tests.tiny_models import conv_classifier, linear_classifier

SCORE_TOLERANCE = 1e-5
# Float16 keeps 11 bits, and a blend may be rounded to another one by a sum taken in another order.
NUMPY_TOLERANCE = {"FP32": 1e-5, "UINT8": 1e-5, "FP16": 5e-3}
OUTPUT_TOLERANCE = {"FP32": 1e-5, "UINT8": 1e-5, "FP16": 2e-2}


def numpy_scores(model: onnx.ModelProto, profile: Profile, images: np.ndarray) -> np.ndarray:
    """Return minus the mean entropies, by numpy and the bare model alone."""
    overlays = overlays_of(profile)
    blends = superimpose(images, overlays, profile.check.blend_rule, profile.input.value_range)
    flat = blends.reshape(-1, *profile.input.shape)
    entropies = reference_entropy(profile, bare_outputs(model, flat, profile.fixed_batch))
    return -mean_entropies(entropies.reshape(len(images), len(overlays)))


def with_boundary(profile: Profile, bits: float) -> Profile:
    return profile.model_copy(
        update={"boundary": profile.boundary.model_copy(update={"boundary_bits": bits})}
    )


def split_in_the_middle(profile: Profile, means: np.ndarray) -> Profile:
    """Return the profile with a boundary that half of the images are below."""
    low, high = np.sort(means)[len(means) // 2 - 1 : len(means) // 2 + 1]
    assert high - low > 1e-4
    return with_boundary(profile, float(low + high) / 2)


@pytest.mark.parametrize("batch", [None, 4])
@pytest.mark.parametrize(("kind", "layout"), [("logits", "NCHW"), ("probabilities", "NHWC")])
@pytest.mark.parametrize("datatype", ["FP32", "FP16", "UINT8"])
@pytest.mark.parametrize("blend", list(BLEND_RULES))
def test_scores_outputs_verdicts_and_p_values_are_the_sidecars(
    blend: str, datatype: str, layout: str, kind: str, batch: int | None
) -> None:
    model = linear_classifier(
        (3, 6, 7), layout=layout, datatype=datatype, batch=batch, softmax=kind == "probabilities", gain=0.3
    )
    profile = make_profile(model, blend=blend, kind=kind)
    images = random_images(profile, 4)
    with open_classifier(model, profile) as classifier:
        sidecar = take_probe(classifier, images, profile.check.n_overlays, max_pairs=7)
    means = sidecar.mean_entropy_bits
    profile = split_in_the_middle(profile, means)

    answer = Guarded(guarded(model, profile))(images)

    np.testing.assert_allclose(answer.scores, -means, atol=SCORE_TOLERANCE)
    np.testing.assert_allclose(
        answer.scores, numpy_scores(model, profile, images), atol=NUMPY_TOLERANCE[datatype]
    )
    bare = bare_outputs(model, images, batch)
    tolerance = OUTPUT_TOLERANCE[datatype]
    np.testing.assert_allclose(answer.outputs, bare, atol=tolerance * max(1.0, np.abs(bare).max()))
    assert answer.outputs.dtype == (np.float16 if datatype == "FP16" else np.float32)
    boundary = profile.boundary.boundary_bits
    assert answer.verdicts == ["accept" if mean >= boundary else "flag" for mean in means]
    assert sorted(answer.verdicts) == ["accept", "accept", "flag", "flag"]
    clean = np.asarray(profile.calibration.clean_entropies_bits)
    np.testing.assert_allclose(answer.p_values, [p_value(mean, clean) for mean in means], rtol=1e-6)


@pytest.mark.parametrize("per_pass", [1, 2, 5, 8, 9, 100])
@pytest.mark.parametrize("rounds", [(1,), (2, 2, 4), (3, 8)])
def test_scores_do_not_depend_on_how_many_overlays_go_into_a_pass(
    per_pass: int, rounds: tuple[int, ...]
) -> None:
    model = conv_classifier()
    profile = make_profile(model, rounds=rounds)
    images = random_images(profile, 5)

    answer = Guarded(guarded(model, profile, overlays_per_pass=per_pass))(images)

    np.testing.assert_allclose(answer.scores, numpy_scores(model, profile, images), atol=SCORE_TOLERANCE)
    np.testing.assert_allclose(answer.outputs, bare_outputs(model, images, None), atol=1e-5)


@pytest.mark.parametrize(
    ("n", "most", "rows"), [(8, 8, 10), (32, 8, 35), (32, 33, 33), (1, 1, 2), (16, 4, 20)]
)
def test_the_parts_hold_the_image_once_with_every_overlay_and_little_else(
    n: int, most: int, rows: int
) -> None:
    made = Parts.of(n, most)
    parts, [weights] = made.overlays, made.weights(np.ones((1, n))).transpose(1, 0, 2)

    assert (parts.size, parts[0, 0], parts.shape[1] <= most) == (rows, -1, True)
    assert parts[weights == 1].tolist() == list(range(n))
    assert set(parts[weights == 0].tolist()) == {-1}
    assert rows - (n + 1) < len(parts)


@pytest.mark.parametrize("opset", [9, 11, 13, 17, 21, 23])
def test_it_goes_around_models_of_any_opset_from_9_on(opset: int) -> None:
    model = linear_classifier((3, 6, 7), opset=opset, gain=0.3)
    profile = make_profile(model, blend="add_clip")
    images = random_images(profile, 3)

    answer = Guarded(guarded(model, profile))(images)

    np.testing.assert_allclose(answer.scores, numpy_scores(model, profile, images), atol=SCORE_TOLERANCE)


def test_under_enforce_the_answers_of_rejected_rows_are_withheld_and_no_others() -> None:
    model = linear_classifier((3, 6, 7), gain=0.3)
    profile = make_profile(model)
    images = random_images(profile, 6)
    profile = split_in_the_middle(profile, -numpy_scores(model, profile, images))

    enforcing, flagging = (
        Guarded(guarded(model, profile, policy))(images) for policy in (Policy.ENFORCE, Policy.FLAG)
    )

    rejected = np.array(enforcing.verdicts) == "reject"
    assert rejected.sum() == 3
    assert enforcing.verdicts == [verdict.replace("flag", "reject") for verdict in flagging.verdicts]
    assert np.isnan(enforcing.outputs[rejected]).all()
    np.testing.assert_array_equal(enforcing.outputs[~rejected], flagging.outputs[~rejected])
    np.testing.assert_array_equal(enforcing.scores, flagging.scores)
    np.testing.assert_array_equal(flagging.outputs, bare_outputs(model, images, None))


def test_a_mean_entropy_on_the_boundary_is_clean() -> None:
    """Weights of 0: every blend is uniform over 4 classes, 2 bits to the last one."""
    model = linear_classifier((3, 6, 7), classes=4, gain=0.0)
    for tensor in model.graph.initializer:
        zeros = np.zeros(tuple(tensor.dims), np.float32)
        tensor.CopyFrom(numpy_helper.from_array(zeros, tensor.name))
    profile = make_profile(model, classes=4)
    images = random_images(profile, 2)
    for bits, verdict in ((2.0, "accept"), (np.nextafter(2.0, 3.0), "flag")):
        answer = Guarded(guarded(model, with_boundary(profile, float(bits))))(images)
        assert (answer.verdicts, answer.scores.tolist()) == ([verdict] * 2, [-2.0] * 2)


def with_a_branch(model: onnx.ModelProto) -> onnx.ModelProto:
    """Put the model's first node into both branches of an If, which reads the model's input from within."""
    first = model.graph.node[0]
    branches = []
    for name in ("then", "else"):
        inner = onnx.NodeProto()
        inner.CopyFrom(first)
        inner.output[0] = f"{name}_flat"
        out = helper.make_tensor_value_info(f"{name}_flat", TensorProto.FLOAT, None)
        branches.append(helper.make_graph([inner], name, [], [out]))
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "condition"))
    flat = helper.make_node("If", ["condition"], ["flat"], then_branch=branches[0], else_branch=branches[1])
    model.graph.node[0].CopyFrom(flat)
    return model


def test_graphs_within_the_model_read_the_blend_and_not_the_clients_image() -> None:
    plain = linear_classifier((3, 6, 7), gain=0.3)
    profile = make_profile(plain)
    images = random_images(profile, 3)

    answer = Guarded(guarded(with_a_branch(linear_classifier((3, 6, 7), gain=0.3)), profile))(images)

    np.testing.assert_allclose(answer.scores, numpy_scores(plain, profile, images), atol=SCORE_TOLERANCE)


def test_a_model_of_ir_version_3_with_weights_among_its_inputs_is_wrapped() -> None:
    model = linear_classifier((3, 6, 7), opset=9, gain=0.3)
    profile = make_profile(model)
    images = random_images(profile, 3)
    expected = numpy_scores(model, profile, images)
    model.ir_version = 3
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))

    answer = Guarded(guarded(model, profile))(images)

    np.testing.assert_allclose(answer.scores, expected, atol=SCORE_TOLERANCE)


@pytest.mark.parametrize("batch", [None, 4])
@pytest.mark.parametrize("policy", [Policy.ENFORCE, Policy.FLAG])
def test_it_is_valid_onnx_with_the_models_own_tensors_and_ours(policy: Policy, batch: int | None) -> None:
    model = linear_classifier(batch=batch)
    before = model.SerializeToString()

    exported = guarded(model, make_profile(model, blend="add_clip"), policy)

    onnx.checker.check_model(exported, full_check=True)
    assert model.SerializeToString() == before
    assert [value.name for value in exported.graph.input] == ["images"]
    assert [value.name for value in exported.graph.output] == [
        *("logits", "guard_score", "guard_verdict", "guard_p_value")
    ]
    assert exported.graph.input[0] == model.graph.input[0]
    assert exported.graph.output[0] == model.graph.output[0]


@pytest.mark.parametrize("name", ["guard_score", "guard_verdict", "guard_p_value"])
def test_a_model_with_a_tensor_named_as_our_outputs_is_refused(name: str) -> None:
    model = linear_classifier()
    model.graph.node[0].output[0] = model.graph.node[1].input[0] = name
    with pytest.raises(UnfitModelError, match=f"has a tensor named '{name}', which is the name of an output"):
        guarded(model, make_profile(model))


def test_a_model_that_was_wrapped_before_is_refused() -> None:
    model = linear_classifier()
    profile = make_profile(model)
    wrapped = build_check_graph(
        model,
        source=profile.input,
        sink=profile.output,
        overlays=overlays_of(profile),
        blend=profile.check.blend_rule,
    )
    with pytest.raises(UnfitModelError, match="was the model wrapped before"):
        guarded(wrapped, profile)
