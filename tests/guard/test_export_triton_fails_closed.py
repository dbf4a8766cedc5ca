"""Within the guarded graph: what cannot be checked is not accepted, and under ``enforce`` gets no answer."""

from __future__ import annotations

import numpy as np
import pytest

from guard.detection.threshold import Policy
from tests.artifacts import make_profile, random_images
from tests.guard.check_reference import bare_outputs
from tests.guard.guarded_model import Guarded, guarded
from tests.tiny_models import linear_classifier, not_a_number_classifier


def unfit(images: np.ndarray, value: float) -> np.ndarray:
    """Return the images with one value of the second row replaced."""
    changed = images.copy()
    changed[1, 2, 3, 1] = value
    return changed


@pytest.mark.parametrize("policy", [Policy.ENFORCE, Policy.FLAG])
@pytest.mark.parametrize("datatype", ["FP32", "FP16"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1.01, -0.01])
def test_what_cannot_be_checked_is_not_accepted(value: float, datatype: str, policy: Policy) -> None:
    model = linear_classifier((3, 6, 7), datatype=datatype, gain=0.3)
    profile = make_profile(model, boundary_bits=0.0)
    images = random_images(profile, 3)
    exported = Guarded(guarded(model, profile, policy))
    fit, seen = exported(images), exported(unfit(images, value))

    closed = "reject" if policy is Policy.ENFORCE else "unchecked"
    assert fit.verdicts == ["accept"] * 3
    assert seen.verdicts == ["accept", closed, "accept"]
    assert np.isnan(seen.scores).tolist() == np.isnan(seen.p_values).tolist() == [False, True, False]
    if policy is Policy.ENFORCE:
        assert np.isnan(seen.outputs).all(axis=1).tolist() == [False, True, False]
    else:
        bare = bare_outputs(model, unfit(images, value), None)
        np.testing.assert_allclose(seen.outputs, bare, rtol=2e-2, atol=2e-2, equal_nan=True)
    np.testing.assert_array_equal(seen.outputs[[0, 2]], fit.outputs[[0, 2]])


def test_values_just_within_the_tolerance_are_checked_and_just_beyond_are_not() -> None:
    """The bounds of the sidecar to the last bit: a thousandth of the range on either side."""
    model = linear_classifier((3, 6, 7), gain=0.3)
    profile = make_profile(model, boundary_bits=0.0)
    images = random_images(profile, 3)
    exported = Guarded(guarded(model, profile))
    low, high = (float(bound.ravel()[0]) for bound in profile.input.value_range.tolerated())
    for bound, outwards in ((low, -np.inf), (high, np.inf)):
        beyond = float(np.nextafter(np.float32(bound), np.float32(outwards)))
        assert exported(unfit(images, bound)).verdicts[1] == "accept"
        assert exported(unfit(images, beyond)).verdicts[1] == "unchecked"


def test_a_range_given_per_channel_is_held_per_channel() -> None:
    model = linear_classifier((3, 6, 7), layout="NHWC", gain=0.3)
    profile = make_profile(model, boundary_bits=0.0)
    ranges = {"low": (-1.0, -2.0, -3.0), "high": (1.0, 2.0, 3.0)}
    profile = profile.model_copy(update={"input": profile.input.model_copy(update=ranges)})
    images = np.zeros((3, 6, 7, 3), np.float32)
    images[:, 0, 0] = [[1.5, 0, 0], [0, 1.5, 0], [0, 0, -3.5]]

    assert Guarded(guarded(model, profile))(images).verdicts == ["unchecked", "accept", "unchecked"]


def test_uint8_images_beyond_a_narrow_range_are_not_accepted() -> None:
    model = linear_classifier((3, 6, 7), datatype="UINT8", gain=0.3)
    profile = make_profile(model, boundary_bits=0.0)
    narrow = {"low": (0.0,), "high": (200.0,)}
    profile = profile.model_copy(update={"input": profile.input.model_copy(update=narrow)})
    images = np.full((2, 3, 6, 7), 100, np.uint8)
    images[1, 0, 0, 0] = 201

    assert Guarded(guarded(model, profile))(images).verdicts == ["accept", "unchecked"]


@pytest.mark.parametrize("policy", [Policy.ENFORCE, Policy.FLAG])
def test_a_model_that_answers_nan_is_never_accepted(policy: Policy) -> None:
    model = not_a_number_classifier()
    answer = Guarded(guarded(model, make_profile(model, boundary_bits=0.0), policy))(
        random_images(make_profile(model), 2)
    )

    assert answer.verdicts == ["reject" if policy is Policy.ENFORCE else "unchecked"] * 2
    assert np.isnan(answer.scores).all()
