"""How well an attack works on a model, and how well the model sees through it."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int64

from calibration.attacks.base import Attack, Labels

__all__ = ["asr", "robust_accuracy"]


def asr(predictions: Int64[np.ndarray, " n"], labels: Labels, attack: Attack) -> float:
    """Return the attack's success rate: the share of stamped images that are given the target's label.

    Args:
        predictions: Predicted classes of the stamped images.
        labels: Their true classes. Only rows that the attack applies to are counted, so that images which
            have the target's label anyway are left out.
        attack: The attack that they were stamped with.

    Raises:
        ValueError: If the attack applies to none of them.

    References:
        NAD, ABL, BackdoorBench and ARGD count so; DHBE counts only images that the model classifies rightly
        without the trigger, and its rates are higher.
    """
    rows = _measured(labels, attack)
    return float(np.mean(predictions[rows] == attack.target_of(labels[rows])))


def robust_accuracy(predictions: Int64[np.ndarray, " n"], labels: Labels, attack: Attack) -> float:
    """Return the share of stamped images that are given their true class, of those the attack applies to.

    Args:
        predictions: Predicted classes of the stamped images.
        labels: Their true classes.
        attack: The attack that they were stamped with.

    Raises:
        ValueError: If the attack applies to none of them.
    """
    rows = _measured(labels, attack)
    return float(np.mean(predictions[rows] == labels[rows]))


def _measured(labels: Labels, attack: Attack) -> Bool[np.ndarray, " n"]:
    rows = attack.applies_to(labels)
    if not rows.any():
        raise ValueError(f"labels: {attack.name} applies to none of the {len(labels)} images")
    return rows
