import numpy as np
import pytest

from calibration.attacks.all_to_all import AllToAll
from calibration.attacks.badnets import BadNets
from calibration.attacks.measure import asr, robust_accuracy

LABELS = np.array([0, 0, 1, 1, 2, 2])
PREDICTIONS = np.array([0, 1, 0, 1, 0, 1])


# Rows of class 1 and 2 count: two of four are taken for class 0, one for its own.
def test_rates_leave_out_images_that_are_of_the_target_anyway() -> None:
    assert asr(PREDICTIONS, LABELS, BadNets(0)) == 0.5
    assert robust_accuracy(PREDICTIONS, LABELS, BadNets(0)) == 0.25


# Targets are 1 1 2 2 0 0: rows 1 and 4 hit; rows 0 and 3 keep their class.
def test_each_image_has_the_target_of_its_own_class() -> None:
    attack = AllToAll(BadNets(0), 3)
    assert asr(PREDICTIONS, LABELS, attack) == pytest.approx(2 / 6)
    assert robust_accuracy(PREDICTIONS, LABELS, attack) == pytest.approx(2 / 6)


def test_nothing_to_measure_on_is_refused() -> None:
    with pytest.raises(ValueError, match="badnets applies to none of the 2 images"):
        asr(np.array([0, 1]), np.array([0, 0]), BadNets(0))
