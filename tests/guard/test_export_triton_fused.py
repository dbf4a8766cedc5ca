"""The fused detector within the exported graph: the scores that serve, two tiers, and nothing unchecked."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from guard.artifact import Profile
from guard.detection.measurements import Measures, Statistic
from guard.detection.p_values import p_value
from guard.detection.superimpose import BLEND_RULES
from guard.detection.threshold import Policy
from guard.runtime.score_shift import full_scores
from tests.artifacts import random_images
from tests.guard.check_reference import bare_outputs, open_classifier
from tests.guard.fused_subjects import DEFAULT, detector_of, fitted
from tests.guard.guarded_model import Guarded, guarded
from tests.tiny_models import linear_classifier, not_a_number_classifier

TOLERANCE = 1e-4


def scores_that_serve(
    model: onnx.ModelProto, profile: Profile, measures: Measures, images: np.ndarray
) -> np.ndarray:
    with open_classifier(model, profile) as classifier:
        return full_scores(classifier, detector_of(profile, measures), images, max_pairs=7)


@pytest.mark.parametrize(
    ("kind", "layout", "batch"),
    [("logits", "NCHW", None), ("logits", "NHWC", 4), ("probabilities", "NHWC", None)],
)
@pytest.mark.parametrize("datatype", ["FP32", "FP16", "UINT8"])
def test_scores_verdicts_and_p_values_are_the_sidecars(
    datatype: str, layout: str, kind: str, batch: int | None
) -> None:
    model = linear_classifier(
        (3, 6, 7), layout=layout, datatype=datatype, batch=batch, softmax=kind == "probabilities", gain=0.3
    )
    profile, measures = fitted(model, kind=kind)
    images = random_images(profile, 8)
    scores = scores_that_serve(model, profile, measures, images)
    fused = profile.fused
    assert fused is not None

    graph = Guarded(guarded(model, profile, measures=measures))
    parts = [graph(images[:4]), graph(images[4:])]

    said = np.concatenate([part.scores for part in parts])
    np.testing.assert_allclose(said, scores, atol=TOLERANCE)
    assert np.ptp(scores) > 0.5
    verdicts = [word for part in parts for word in part.verdicts]
    assert verdicts == ["flag" if score > fused.boundary.boundary else "accept" for score in scores]
    assert set(verdicts) == {"flag", "accept"}
    clean = -np.asarray(fused.clean_scores)[::-1]
    np.testing.assert_allclose(
        np.concatenate([part.p_values for part in parts]), [p_value(-one, clean) for one in scores], rtol=1e-6
    )


@pytest.mark.parametrize(("per_pass", "blend"), list(zip((1, 3, 10, 100), BLEND_RULES, strict=True)))
def test_scores_do_not_depend_on_what_goes_into_a_pass(per_pass: int, blend: str) -> None:
    model = linear_classifier((3, 6, 7), gain=0.3)
    profile, measures = fitted(model, blend=blend, rounds=(2, 3, 4))
    images = random_images(profile, 5)

    answer = Guarded(guarded(model, profile, overlays_per_pass=per_pass, measures=measures))(images)

    np.testing.assert_allclose(
        answer.scores, scores_that_serve(model, profile, measures, images), atol=TOLERANCE
    )
    np.testing.assert_allclose(answer.outputs, bare_outputs(model, images, None), atol=1e-5)


@pytest.mark.parametrize(
    ("statistics", "strata"),
    [
        (("strip",), False),
        (("departure",), False),
        (("stratified",), True),
        (("strip", "departure"), True),
        (("stratified", "strip", "surprise"), True),
        (("surprise", "strip", "departure", "stratified"), True),
        (("surprise", "departure"), False),
    ],
)
def test_any_list_of_statistics_in_any_order(statistics: tuple[Statistic, ...], strata: bool) -> None:
    model = linear_classifier((3, 6, 7), gain=0.3)
    profile, measures = fitted(model, statistics, strata=strata)
    images = random_images(profile, 6)

    answer = Guarded(guarded(model, profile, measures=measures))(images)

    np.testing.assert_allclose(
        answer.scores, scores_that_serve(model, profile, measures, images), atol=TOLERANCE
    )
    assert np.ptp(answer.scores) > 0.1


def test_an_older_artifact_s_highest_statistic_is_exported_as_it_serves() -> None:
    model = linear_classifier((3, 6, 7), gain=0.3)
    profile, measures = fitted(model, views=False)
    images = random_images(profile, 6)

    answer = Guarded(guarded(model, profile, measures=measures))(images)

    np.testing.assert_allclose(
        answer.scores, scores_that_serve(model, profile, measures, images), atol=TOLERANCE
    )
    assert np.ptp(answer.scores) > 0.1


@pytest.mark.parametrize("opset", [9, 11, 13, 18, 23])
def test_it_goes_around_models_of_any_opset_from_9_on(opset: int) -> None:
    model = linear_classifier((3, 6, 7), opset=opset, gain=0.3)
    profile, measures = fitted(model, blend="add_clip")
    images = random_images(profile, 3)
    graph = guarded(model, profile, measures=measures)

    onnx.checker.check_model(graph, full_check=True)
    np.testing.assert_allclose(
        Guarded(graph)(images).scores, scores_that_serve(model, profile, measures, images), atol=TOLERANCE
    )


def test_the_table_is_in_the_file_once() -> None:
    model = linear_classifier((3, 6, 7), classes=100)
    profile, measures = fitted(model, classes=100)
    table = measures.responses.expected.nbytes
    assert table > 300_000

    without = len(guarded(model, profile.model_copy(update={"fused": None})).SerializeToString())
    with_it = len(guarded(model, profile, measures=measures).SerializeToString())

    assert table < with_it - without < table + 40_000


# Two tiers


@pytest.mark.parametrize("policy", [Policy.ENFORCE, Policy.FLAG])
@pytest.mark.parametrize("detector", ["strip", "fused"])
def test_between_two_boundaries_it_is_flagged_and_answered(detector: str, policy: Policy) -> None:
    model = linear_classifier((3, 6, 7), gain=0.3)
    profile, measures = fitted(model, DEFAULT if detector == "fused" else ("strip",))
    images = random_images(profile, 9)
    profile = profile if detector == "fused" else profile.model_copy(update={"fused": None})
    scores = Guarded(guarded(model, profile, measures=measures))(images).scores
    low, high = (float(np.sort(scores)[i : i + 2].mean()) for i in (2, 5))
    profile = tiered(profile, low, high)

    answer = Guarded(guarded(model, profile, policy, measures=measures))(images)

    beyond = "reject" if policy is Policy.ENFORCE else "flag"
    expected = ["accept" if s < low else "flag" if s < high else beyond for s in scores]
    assert answer.verdicts == expected
    assert sorted(answer.verdicts).count("accept") == 3
    withheld = np.isnan(answer.outputs).all(axis=1)
    assert withheld.tolist() == [word == "reject" for word in expected]
    np.testing.assert_array_equal(answer.outputs[~withheld], bare_outputs(model, images, None)[~withheld])


def tiered(profile: Profile, low: float, high: float) -> Profile:
    """Return the profile with these boundaries on scores."""
    if profile.fused is not None:
        first, second = (profile.fused.boundary.model_copy(update={"boundary": b}) for b in (low, high))
        return profile.model_copy(
            update={"fused": profile.fused.model_copy(update={"boundary": first, "block": second})}
        )
    first, second = (profile.boundary.model_copy(update={"boundary_bits": -b}) for b in (low, high))
    return profile.model_copy(update={"boundary": first, "block": second})


def test_a_score_on_the_boundary_is_clean() -> None:
    model = linear_classifier((3, 6, 7), gain=0.3)
    profile, measures = fitted(model, ("departure",))
    images = random_images(profile, 1)
    [score] = scores_of(guarded(model, profile, measures=measures), images)
    for bound, verdict in ((score, "accept"), (np.nextafter(score, -np.inf), "flag")):
        graph = Guarded(guarded(model, tiered(profile, bound, bound), measures=measures))
        assert graph(images).verdicts == [verdict]


def scores_of(graph: onnx.ModelProto, images: np.ndarray) -> list[float]:
    """Return the scores before they are rounded to float32."""
    wide = onnx.helper.make_tensor_value_info("guard_check/whole/score", onnx.TensorProto.DOUBLE, None)
    graph.graph.output.append(wide)
    session = Guarded(graph).session
    [scores] = session.run([wide.name], {session.get_inputs()[0].name: images})
    return [float(score) for score in scores.ravel()]


# What cannot be checked


@pytest.mark.parametrize(
    ("value", "datatype", "policy"),
    [
        (np.nan, "FP32", Policy.ENFORCE),
        (np.nan, "FP16", Policy.FLAG),
        (np.inf, "FP32", Policy.FLAG),
        (-np.inf, "FP16", Policy.ENFORCE),
        (1.01, "FP32", Policy.ENFORCE),
        (-0.01, "FP16", Policy.FLAG),
    ],
)
def test_what_cannot_be_checked_is_not_accepted(value: float, datatype: str, policy: Policy) -> None:
    model = linear_classifier((3, 6, 7), datatype=datatype, gain=0.3)
    profile, measures = fitted(model, boundaries=(1e6, 1e6))
    images = random_images(profile, 3)
    unfit = images.copy()
    unfit[1, 2, 3, 1] = value
    graph = Guarded(guarded(model, profile, policy, measures=measures))
    fit, seen = graph(images), graph(unfit)

    closed = "reject" if policy is Policy.ENFORCE else "unchecked"
    assert fit.verdicts == ["accept"] * 3
    assert seen.verdicts == ["accept", closed, "accept"]
    assert np.isnan(seen.scores).tolist() == np.isnan(seen.p_values).tolist() == [False, True, False]
    if policy is Policy.ENFORCE:
        assert np.isnan(seen.outputs).all(axis=1).tolist() == [False, True, False]
    np.testing.assert_array_equal(seen.outputs[[0, 2]], fit.outputs[[0, 2]])


@pytest.mark.parametrize("policy", [Policy.ENFORCE, Policy.FLAG])
@pytest.mark.parametrize("statistics", [DEFAULT, ("strip",), ("stratified",)])
def test_a_model_that_answers_nan_is_never_accepted(
    statistics: tuple[Statistic, ...], policy: Policy
) -> None:
    profile, measures = fitted(linear_classifier(), statistics, boundaries=(1e6, 1e6))

    answer = Guarded(guarded(not_a_number_classifier(), profile, policy, measures=measures))(
        random_images(profile, 2)
    )

    assert answer.verdicts == ["reject" if policy is Policy.ENFORCE else "unchecked"] * 2
    assert np.isnan(answer.scores).all()


@pytest.mark.parametrize("answer", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("spoiled", ["the image itself", "its blends"])
def test_one_answer_that_is_not_finite_is_enough(spoiled: str, answer: float) -> None:
    """Blends are brighter than the images are: an addition of what only the dark, or only the bright, get."""
    profile, measures = fitted(linear_classifier(), ("departure", "stratified"), boundaries=(1e6, 1e6))
    images = np.stack([np.full((3, 8, 8), level, np.float32) for level in (0.02, 0.6)])
    model = spoiling(linear_classifier(), answer, dark=spoiled == "the image itself")
    sound = bare_outputs(model, images[:1], None)
    assert np.isfinite(sound[0, 1:]).all()
    assert np.isfinite(sound[0, 0]) == (spoiled == "its blends")
    with open_classifier(model, profile) as classifier:
        scores = full_scores(classifier, detector_of(profile, measures), images[:1], max_pairs=9)

    said = Guarded(guarded(model, profile, measures=measures))(images[:1])

    ruled_out = spoiled == "its blends" and answer == -np.inf  # probability 0 of one class, and sound
    assert np.isfinite(scores).tolist() == [ruled_out]
    assert said.verdicts == ["accept" if ruled_out else "unchecked"]
    assert np.isfinite(said.scores).tolist() == [ruled_out]


def spoiling(model: onnx.ModelProto, answer: float, *, dark: bool) -> onnx.ModelProto:
    """Add ``answer`` to the first logit of dark images, or of all others."""
    model.graph.node[-1].output[0] = "plain"
    first = np.zeros((1, 10), np.bool_)
    first[0, 0] = True
    constants = {"level": np.float32(0.1), "first": first, "bad": np.float32(answer)}
    for name, value in constants.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
    for op, inputs, output in (
        ("ReduceMean", ["flat"], "mean"),
        ("Less" if dark else "Greater", ["mean", "level"], "chosen"),
        ("And", ["chosen", "first"], "place"),
        ("Where", ["place", "bad", "plain"], "logits"),
    ):
        extra = {"axes": [1], "keepdims": 1} if op == "ReduceMean" else {}
        model.graph.node.append(onnx.helper.make_node(op, inputs, [output], **extra))
    return model
