"""Which setting is chosen of what canaries found, and what a setting is measured to find."""

from __future__ import annotations

import numpy as np
import pytest

from calibration.attacks.badnets import BadNets
from calibration.attacks.inverted import Inverted
from calibration.attacks.measure import asr
from calibration.canaries.choice import FUSED, PLAIN, STATISTICS_TRIED, Choice, Found, Setting, choose_setting
from calibration.canaries.kinds import copies_for, make_canary
from calibration.canaries.measuring import Asked, Rate, Subject, found_by, settings_of, together
from calibration.canaries.stamps import Values
from calibration.canary_kinds import KINDS
from calibration.evaluation.numbers import share
from guard.detection.entropy import entropy_of_probabilities

DEFAULT = Setting("add", 32, FUSED)
CLASSES, OVERLAYS = 4, 16


def found(setting: Setting, **hits: int) -> Found:
    return Found(setting, {kind: share(np.arange(100) < count) for kind, count in hits.items()}, 5.0)


def test_the_highest_mean_is_chosen() -> None:
    convex = found(Setting("convex", 32, FUSED), badnets=100, blend=60)
    assert choose_setting([found(DEFAULT, badnets=90, blend=50), convex], DEFAULT) == convex


def test_of_equals_fewer_overlays_are_chosen_and_then_the_default() -> None:
    few = [found(Setting(blend, 16, FUSED), sig=90) for blend in ("convex", "add", "add_clip")]
    many = [found(DEFAULT, sig=90), found(Setting("convex", 32, FUSED), sig=90)]
    assert choose_setting([*many, *few], DEFAULT).setting == Setting("add", 16, FUSED)


def test_a_statistic_without_its_canary_is_left_out_only_for_a_gain() -> None:
    without = Setting("add", 32, ("departure", "stratified"))
    little = [found(DEFAULT, badnets=80), found(without, badnets=84)]
    assert choose_setting(little, DEFAULT).setting == DEFAULT
    much = [found(DEFAULT, badnets=80), found(without, badnets=87)]
    assert choose_setting(much, DEFAULT).setting == without
    seeing = [found(DEFAULT, low_confidence=80), found(without, low_confidence=82)]
    assert choose_setting(seeing, DEFAULT).setting == without


def test_each_statistic_left_out_costs_and_is_told() -> None:
    plain, pair = Setting("add", 32, PLAIN), Setting("add", 32, ("departure", "stratified"))
    tried = [found(DEFAULT, badnets=5), found(plain, badnets=48), found(pair, badnets=43)]
    chosen = choose_setting(tried, DEFAULT)
    assert chosen.setting == pair
    lines = list(Choice(chosen, tried[0], tuple(tried)).lines())
    assert [line.split(";")[0] for line in lines if "left out" in line] == ["left out: entropy"]


def test_every_other_set_of_statistics_is_the_plain_detector_or_fused() -> None:
    assert [Setting("add", 8, names).fused for names in STATISTICS_TRIED] == [True] * 5 + [False]
    assert len(settings_of(["add", "convex"], [16, 32], STATISTICS_TRIED)) == 24


@pytest.mark.parametrize("statistics", STATISTICS_TRIED)
def test_a_trigger_that_holds_under_every_overlay_is_found_and_clean_inputs_are_not(
    statistics: tuple[str, ...],
) -> None:
    setting = Setting("add", OVERLAYS, statistics)  # type: ignore[arg-type]
    one = found_by(setting, synthetic(), Rate(0.01, 0.05))
    assert one.found["held"].mean() == 1.0
    assert one.found["clean"].mean() < 0.03
    assert 1 <= one.passes_clean <= OVERLAYS


def test_fewer_overlays_ask_the_first_ones_alone() -> None:
    subject = synthetic()
    garbled = Asked(
        subject.fit.predicted,
        np.concatenate([subject.fit.probabilities[:, :8], subject.fit.probabilities[:, 8:] * 0], axis=1),
        subject.fit.entropies,
    )
    other = Subject(garbled, subject.clean, subject.triggered, subject.overlay_classes)
    setting, rate = Setting("add", 8, ("departure", "surprise")), Rate(0.01, 0.05)
    expected, got = found_by(setting, subject, rate), found_by(setting, other, rate)
    assert (expected.found["clean"] == got.found["clean"]).all()
    assert expected.passes_clean == got.passes_clean


def test_what_several_copies_show_is_told_by_kind() -> None:
    first, second = found_by(DEFAULT_SMALL, synthetic(), RATE), found_by(DEFAULT_SMALL, synthetic(1), RATE)
    whole = together([first, second])
    assert set(whole.tpr) == {"held", "clean"}
    assert whole.passes_clean == pytest.approx((first.passes_clean + second.passes_clean) / 2)


def test_each_kind_can_be_made_and_those_of_one_name_share_a_copy() -> None:
    predicted = np.arange(60) % CLASSES
    images = np.random.default_rng(0).random((60, 3, 12, 12), np.float32)
    for kind in KINDS:
        canary = make_canary(kind, 2, (3, 12, 12), predicted, CLASSES, np.random.default_rng(1))
        stamped = canary.attack.stamp(images)
        assert stamped.shape == images.shape
        assert (stamped != images).any(axis=(1, 2, 3)).all()
        targets = canary.attack.target_of(predicted)
        assert asr(targets, predicted, canary.attack) == 1.0
        assert (targets == 2).all() or kind == "all_to_all"
    assert copies_for(tuple(KINDS))[0] == ("badnets", "blend", "sig")
    assert [len(copy) for copy in copies_for(tuple(KINDS))] == [3, 1, 1, 1]


def test_images_outside_0_to_1_are_stamped_in_their_own_values() -> None:
    values = Values(np.array([-1.0, -2.0], np.float32), np.array([1.0, 2.0], np.float32))
    stamped = values.stamp(BadNets(0, ((1.0, 0.0),)), np.zeros((1, 2, 4, 4), np.float32))
    assert stamped[0, :, 3, 2:].tolist() == [[1.0, -1.0], [2.0, -2.0]]
    assert stamped[0, :, :3].max() == pytest.approx(0.0, abs=1e-6)


def test_what_a_scan_inverted_is_in_the_models_values_already() -> None:
    values = Values(np.array([-1.0], np.float32), np.array([1.0], np.float32))
    rows = np.zeros((1, 1, 2, 2), np.float32)
    added = Inverted(0, addition=np.full((1, 2, 2), 0.5, np.float32))
    assert values.stamp(added, rows).tolist() == added.stamp(rows).tolist() == (rows + 0.5).tolist()


def synthetic(seed: int = 0) -> Subject:
    """Answers of a model that takes a blend for the overlay's class or the image's; a trigger holds it."""
    random = np.random.default_rng(seed)
    overlay_classes = np.arange(OVERLAYS) % CLASSES
    triggered = {
        "held": asked(random, 80, overlay_classes, 0.99),
        "clean": asked(random, 400, overlay_classes),
    }
    return Subject(
        asked(random, 400, overlay_classes), asked(random, 400, overlay_classes), triggered, overlay_classes
    )


def asked(
    random: np.random.Generator, count: int, overlay_classes: np.ndarray, hold: float | None = None
) -> Asked:
    predicted = random.integers(0, CLASSES, count)
    kept = random.beta(5, 5, (count, OVERLAYS)) if hold is None else np.full((count, OVERLAYS), hold)
    own = np.eye(CLASSES)[predicted][:, None]
    probabilities = kept[..., None] * own + (1 - kept[..., None]) * np.eye(CLASSES)[overlay_classes]
    probabilities = (0.98 * probabilities + 0.02 / CLASSES).astype(np.float32)
    return Asked(predicted, probabilities, entropy_of_probabilities(probabilities).astype(np.float32))


DEFAULT_SMALL, RATE = Setting("add", OVERLAYS, FUSED), Rate(0.01, 0.05)
