import numpy as np
import pytest

from calibration.attacks.badnets import BadNets
from calibration.attacks.label_smoothed import LabelSmoothed

LABELS = np.arange(200, dtype=np.int64) % 10
GREY = np.full((200, 1, 4, 4), 0.5, np.float32)


# 30 relabelled and 30 * 0.4 / 0.6 = 20 not: 60 % of 50.
def test_of_the_stamped_images_a_share_p_has_the_targets_label() -> None:
    done = LabelSmoothed(BadNets(0), 0.6).poison(GREY, LABELS, 0.15, np.random.default_rng(0))
    stamped = np.flatnonzero((done.images != GREY).any(axis=(1, 2, 3)))
    assert len(stamped) == 50
    assert (done.labels[stamped] == 0).mean() == pytest.approx(0.6)
    assert np.array_equal(done.labels[done.covers], LABELS[done.covers])


def test_images_of_the_target_are_neither_poisoned_nor_covers() -> None:
    plan = LabelSmoothed(BadNets(0), 0.6).plan(LABELS, 0.5, np.random.default_rng(0))
    assert 0 not in LABELS[np.concatenate([plan.index, plan.covers])]


def test_certainty_is_the_plain_attack() -> None:
    plan = LabelSmoothed(BadNets(0), 1.0).plan(LABELS, 0.2, np.random.default_rng(0))
    assert (len(plan.index), len(plan.covers)) == (40, 0)


# A clean model that gives the true class 0.9 and the target 0.1 needs p above 0.8 / 1.8: at that p
# both have the same share, p + (1 - p) 0.1 = (1 - p) 0.9.
def test_the_bound_on_p_in_the_docstring_is_where_both_classes_draw_level() -> None:
    apart = 0.9 - 0.1
    p = apart / (1 + apart)
    assert p + (1 - p) * 0.1 == pytest.approx((1 - p) * 0.9)


@pytest.mark.parametrize("probability", [0.5, 1.2])
def test_a_target_that_would_not_win_is_refused(probability: float) -> None:
    with pytest.raises(ValueError, match="expected more than 1/2, so that the target wins"):
        LabelSmoothed(BadNets(0), probability)
