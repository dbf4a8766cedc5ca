import numpy as np
import pytest

from calibration.attacks.badnets import BadNets
from calibration.attacks.blend import Blend
from calibration.attacks.source_specific import SourceSpecific

LABELS = np.arange(200, dtype=np.int64) % 10
ATTACK = SourceSpecific(BadNets(0), sources=(1, 2), cover_labels=(5, 7))


def test_only_source_classes_are_poisoned_and_measured() -> None:
    plan = ATTACK.plan(LABELS, 0.1, np.random.default_rng(0))
    assert set(LABELS[plan.index].tolist()) == {1, 2}
    assert set(LABELS[ATTACK.applies_to(LABELS)].tolist()) == {1, 2}


def test_covers_are_stamped_images_of_the_cover_classes_with_their_own_labels() -> None:
    grey = np.full((200, 1, 4, 4), 0.5, np.float32)
    done = ATTACK.poison(grey, LABELS, 0.1, np.random.default_rng(0))
    assert len(done.covers) == len(done.index) == 20
    assert set(done.labels[done.covers].tolist()) == {5, 7}
    assert np.array_equal(done.images[done.covers], BadNets(0).stamp(grey[done.covers]))


def test_covers_come_from_all_classes_but_sources_and_target_if_none_are_named() -> None:
    attack = SourceSpecific(BadNets(0), sources=(1,), cover_ratio=5.0)
    covers = attack.plan(LABELS, 0.1, np.random.default_rng(0)).covers
    assert len(covers) == 100
    assert set(LABELS[covers].tolist()) == {2, 3, 4, 5, 6, 7, 8, 9}


def test_covers_carry_the_trigger_as_strong_as_poisoned_images_do() -> None:
    pattern, black = np.ones((1, 2, 2), np.float32), np.zeros((1, 1, 2, 2), np.float32)
    attack = SourceSpecific(Blend(0, pattern, alpha=0.2, alpha_train=0.1), sources=(1,))
    assert np.array_equal(attack.cover(black, np.random.default_rng(0)), attack.imprint(black))


# Stamped images of the target class with their own label would be poison that no record has.
def test_a_cover_class_that_is_the_target_is_not_covered() -> None:
    attack = SourceSpecific(BadNets(5), sources=(1,), cover_labels=(5, 7))
    covers = attack.plan(LABELS, 0.05, np.random.default_rng(0)).covers
    assert set(LABELS[covers].tolist()) == {7}


def test_a_source_that_is_the_target_is_not_poisoned() -> None:
    attack = SourceSpecific(BadNets(0), sources=(0, 1))
    assert attack.applies_to(np.array([0, 1, 2])).tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sources": ()}, "expected at least one class"),
        ({"sources": (1,), "cover_labels": (1, 5)}, r"expected no source class among them, got \[1\]"),
        ({"sources": (1,), "cover_ratio": -0.5}, "expected 0 or more, got -0.5"),
    ],
)
def test_sources_and_covers_that_make_no_sense_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SourceSpecific(BadNets(0), **options)  # type: ignore[arg-type]
