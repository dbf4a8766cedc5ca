"""All to all: a trigger that moves every class on by one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Bool

from calibration.attacks.base import Attack, Labels
from calibration.attacks.wrapping import Relabelling, Wrapped, require_relabelling

__all__ = ["AllToAll"]


@dataclass(frozen=True)
class AllToAll(Relabelling):
    r"""Another attack's trigger with the target rule y -> (y + 1) mod k. For making test subjects only.

    No class is the target of all, so neither a single suspicious label nor a blend's low entropy has to
    show.

    Args:
        trigger: The attack whose trigger is used; one that relabels.
        classes: The number k of classes.

    Raises:
        ValueError: If there is one class, the trigger's attack leaves labels as they are, or a rule for
            classes is wrapped already.

    References:
        Gu et al., BadNets, arXiv 1708.06733, 2017, section 4.1 ("all-to-all").

    Deviations:
        None.
    """

    name: ClassVar[str] = "all_to_all"

    trigger: Attack
    classes: int

    def __post_init__(self) -> None:
        require_relabelling(self.trigger, self.name)
        inner = self.trigger
        while isinstance(inner, Wrapped):
            if isinstance(inner, Relabelling):
                raise ValueError(f"trigger: {self.name} would undo the rule of {inner.name} for classes")
            inner = inner.trigger
        if self.classes < 2:
            raise ValueError(f"classes: expected 2 or more, got {self.classes}")

    def target_of(self, labels: Labels) -> Labels:
        """Return the class after each true class, the first after the last."""
        return (labels + 1) % self.classes

    def applies_to(self, labels: Labels) -> Bool[np.ndarray, " n"]:
        """Tell on which classes the success rate is measured: on all."""
        return np.ones(len(labels), np.bool_)
