"""What scores beyond those of blends compute: against plain references, and in the right direction."""

from __future__ import annotations

import numpy as np
import pytest

from guard.detection.capabilities.ibd_psc import fit_consistency
from guard.detection.capabilities.layer_distances import fit_layer_distances, held_out_scores
from guard.detection.capabilities.scale_up import FACTORS, amplified, scale_up_scores
from guard.detection.capabilities.teco_lite import CORRUPTIONS, SEVERITIES, corrupted, fit_robustness
from guard.detection.capabilities.unit_range import from_unit, to_unit
from guard.detection.superimpose import ValueRange

CLASSES, WIDTHS = 3, (4, 2)


def world(count: int, seed: int = 0, spread: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Return classes, and features around a centre of each, correlated within a layer."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(77).normal(0, 5, (CLASSES, sum(WIDTHS)))
    mixing = np.random.default_rng(78).normal(0, 1, (sum(WIDTHS), sum(WIDTHS)))
    predicted = random.integers(0, CLASSES, count)
    noise = random.normal(0, spread, (count, sum(WIDTHS))) @ mixing
    return predicted, (centres[predicted] + noise).astype(np.float32)


def test_the_distance_is_mahalanobis_of_each_layer_around_the_class_mean() -> None:
    predicted, features = world(20_000)
    fitted = fit_layer_distances(predicted, features, WIDTHS, CLASSES)
    some, seen = world(50, seed=1)
    means = np.stack([features[predicted == one].mean(axis=0) for one in range(CLASSES)])
    away, own = seen - means[some], features - means[predicted]
    expected = np.zeros(50)
    for part in (slice(0, 4), slice(4, 6)):
        inverse = np.linalg.inv(np.cov(own[:, part].T))
        expected += np.einsum("ni,ij,nj->n", away[:, part], inverse, away[:, part])
    np.testing.assert_allclose(fitted.scores(some, seen), np.log(expected), atol=0.02)


def test_inputs_of_another_class_inside_than_predicted_score_higher() -> None:
    fitted = fit_layer_distances(*world(300), WIDTHS, CLASSES)
    predicted, features = world(100, seed=1)
    assert (fitted.scores((predicted + 1) % CLASSES, features) > fitted.scores(predicted, features)).all()


def test_a_distance_depends_on_its_own_row_and_is_nan_without_class_or_number() -> None:
    fitted = fit_layer_distances(*world(300), WIDTHS, CLASSES)
    predicted, features = world(20, seed=1)
    whole = fitted.scores(predicted, features)
    alone = [fitted.scores(predicted[[row]], features[[row]])[0] for row in range(20)]
    np.testing.assert_allclose(alone, whole, rtol=1e-12)
    features[0, 3], predicted[1] = np.inf, -1
    spoilt = fitted.scores(predicted, features)
    assert np.isnan(spoilt[:2]).all()
    np.testing.assert_array_equal(spoilt[2:], whole[2:])


def test_fewer_inputs_than_channels_will_do_and_a_channel_that_is_always_the_same_too() -> None:
    random = np.random.default_rng(0)
    predicted = random.integers(0, 2, 30)
    features = random.normal(0, 1, (30, 64)).astype(np.float32)
    features[:, 5] = 2.0
    fitted = fit_layer_distances(predicted, features, (64,), 2)
    new = random.normal(0, 1, (10, 64)).astype(np.float32)
    new[:, 5] = 2.0
    far = new + 5 * random.normal(0, 1, (10, 64)).astype(np.float32)
    classes = np.zeros(10, np.int64)
    assert np.isfinite(fitted.scores(classes, new)).all()
    assert fitted.scores(classes, far).min() > fitted.scores(classes, new).max()


def test_held_out_scores_are_those_of_new_inputs_and_fitted_ones_are_lower() -> None:
    random = np.random.default_rng(3)
    mixing = random.normal(0, 1, (40, 40)) * np.geomspace(1, 1e-2, 40)[:, None]
    features = (random.normal(0, 1, (120, 40)) @ mixing).astype(np.float32)
    predicted = random.integers(0, 2, 120)
    fitted = fit_layer_distances(predicted, features, (40,), 2)
    new = (random.normal(0, 1, (4000, 40)) @ mixing).astype(np.float32)
    of_new = np.median(fitted.scores(random.integers(0, 2, 4000), new))
    of_fitted = np.median(fitted.scores(predicted, features))
    held_out = np.median(held_out_scores(predicted, features, (40,), 2))
    assert abs(held_out - of_new) < 0.5 * (of_new - of_fitted)
    assert of_fitted < of_new - 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"predicted": np.array([0])}, "two clean inputs or more, got 1"),
        ({"predicted": np.array([0, 3])}, "classes from 0 to 2, got 0 to 3"),
        ({"features": np.zeros((2, 5), np.float32)}, r"expected shape \(2, 6\)"),
        ({"features": np.full((2, 6), np.nan, np.float32)}, "finite"),
    ],
)
def test_what_cannot_be_fitted_is_refused(change: dict[str, np.ndarray], message: str) -> None:
    given = {"predicted": np.array([0, 1]), "features": np.zeros((2, 6), np.float32)} | change
    with pytest.raises(ValueError, match=message):
        fit_layer_distances(given["predicted"], given["features"][: len(given["predicted"])], WIDTHS, CLASSES)


def test_amplified_images_are_cut_off_at_white() -> None:
    images = np.array([0.0, 0.1, 0.3, 0.5], np.float32).reshape(1, 1, 2, 2)
    assert amplified(images, 3.0).reshape(-1).tolist() == pytest.approx([0.0, 0.3, 0.9, 1.0])
    assert len(FACTORS) == 5


def test_an_input_that_keeps_its_class_is_more_suspicious() -> None:
    kept = np.array([[0.9, 0.8, 1.0], [0.1, 0.4, 0.2]], np.float32)
    assert scale_up_scores(kept).tolist() == pytest.approx([0.9, 0.7 / 3])
    predicted = np.repeat([0, 1], 50)
    clean = np.random.default_rng(0).uniform(0, 0.3, (100, 3)) + 0.5 * predicted[:, None]
    consistency = fit_consistency(predicted, clean, 2)
    scores = consistency.scores(np.array([0, 0, 1]), np.array([[0.15] * 3, [0.65] * 3, [0.65] * 3]))
    assert scores[1] > 3
    assert abs(scores[0]) < 1
    assert abs(scores[2]) < 1


def test_bearing_corruptions_better_or_worse_than_clean_inputs_is_suspicious() -> None:
    random = np.random.default_rng(0)
    clean = np.clip(random.normal(0.5, 0.05, (200, 4, SEVERITIES)), 0.01, 1)
    fitted = fit_robustness(np.zeros(200, np.int64), clean, 2)
    usual, better, worse = (np.full((1, 4, SEVERITIES), value) for value in (0.5, 1.0, 0.1))
    zero = np.zeros(1, np.int64)
    assert fitted.scores(zero, usual)[0] < 1 < min(fitted.scores(zero, one)[0] for one in (better, worse))


@pytest.mark.parametrize("name", sorted(CORRUPTIONS))
def test_corruptions_grow_with_severity_stay_in_range_and_are_the_same_each_time(name: str) -> None:
    images = np.random.default_rng(0).uniform(0, 1, (3, 3, 9, 8)).astype(np.float32)
    changed = [corrupted(images, name, severity) for severity in range(SEVERITIES)]
    moved = [float(np.abs(one - images).mean()) for one in changed]
    assert moved == sorted(moved)
    assert moved[0] > 0
    for severity, one in enumerate(changed):
        assert (one.shape, one.dtype) == (images.shape, np.float32)
        assert one.min() >= 0
        assert one.max() <= 1
        alone = corrupted(images[1:2], name, severity)
        np.testing.assert_allclose(alone, one[1:2], atol=1e-6)


@pytest.mark.parametrize("datatype", ["FP32", "UINT8"])
@pytest.mark.parametrize("axis", [0, 2])
def test_images_come_back_from_the_unit_range(datatype: str, axis: int) -> None:
    low, high = ((0.0,), (255.0,)) if datatype == "UINT8" else ((-2.0, -1.0, 0.0), (2.0, 3.0, 1.0))
    value_range = ValueRange(low, high, axis)
    shape = (2, 3, 4, 5) if axis == 0 else (2, 4, 5, 3)
    unit = np.random.default_rng(0).uniform(0, 1, (2, 3, 4, 5)).astype(np.float32)
    rows = from_unit(unit, value_range, datatype)
    assert rows.shape == shape
    assert rows.dtype == (np.uint8 if datatype == "UINT8" else np.float32)
    np.testing.assert_allclose(
        to_unit(rows, value_range), unit, atol=0.51 / 255 if datatype == "UINT8" else 1e-6
    )
