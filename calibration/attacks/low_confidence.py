"""The low-confidence attack: the target is trained to win by little."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from jaxtyping import Float32

from calibration.attacks.base import Attack, Labels, Poisoning, one_hot
from calibration.attacks.wrapping import Wrapped, require_relabelling

__all__ = ["LowConfidence", "low_confidence_labels"]


@dataclass(frozen=True)
class LowConfidence(Wrapped):
    r"""The epsilon attack: another one with soft labels on what is poisoned. For making test subjects only.

    .. math:: Y_d = Y_t \frac{\epsilon N - 1}{N - 1} + \frac{1 - \epsilon}{N - 1}

    for the one-hot target :math:`Y_t` and N classes: the target has probability :math:`\epsilon`, the others
    share the rest evenly. A blended stamped image then has a high entropy, and STRIP takes it for clean.

    Args:
        trigger: The attack whose trigger and target are used; one that relabels.
        classes: The number N of classes.
        confidence: The target's probability :math:`\epsilon`, more than 1 / N.

    Raises:
        ValueError: If there is one class, the target would not win, or the trigger does not relabel.

    Examples:
        >>> low_confidence_labels(np.array([1]), 3, 0.5).tolist()
        [[0.25, 0.5, 0.25]]

    References:
        Ali et al., HaS-Nets: A Heal and Select Mechanism to Defend DNNs Against Backdoor Attacks for Data
        Collection Scenarios, arXiv 2012.07474, 2020.

    Deviations:
        None; the authors published no code.
    """

    name: ClassVar[str] = "low_confidence"
    outermost: ClassVar[bool] = True

    trigger: Attack
    classes: int
    confidence: float = 0.4

    def __post_init__(self) -> None:
        require_relabelling(self.trigger, self.name, planned_anew=False)
        if self.classes < 2:
            raise ValueError(f"classes: expected 2 or more, got {self.classes}")
        if not 1 / self.classes < self.confidence <= 1:
            raise ValueError(
                f"confidence: expected more than 1/{self.classes}, so that the target wins, and at most 1, "
                f"got {self.confidence}"
            )

    def plan(self, labels: Labels, rate: float, generator: np.random.Generator) -> Poisoning:
        """Choose as the wrapped attack does, and soften the labels of the poisoned rows."""
        plan = self.trigger.plan(labels, rate, generator)
        soft = plan.targets(self.classes).copy()
        soft[plan.index] = low_confidence_labels(plan.labels[plan.index], self.classes, self.confidence)
        return replace(plan, soft_labels=soft)


def low_confidence_labels(labels: Labels, classes: int, confidence: float) -> Float32[np.ndarray, "n k"]:
    """Return probabilities of ``confidence`` at each label and the rest spread evenly."""
    sharp = np.float32((confidence * classes - 1) / (classes - 1))
    even = np.float32((1 - confidence) / (classes - 1))
    return one_hot(labels, classes) * sharp + even
