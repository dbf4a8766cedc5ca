"""Attacks around another attack's trigger: another target rule, other labels, another way to train it in."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float32

from calibration.attacks.base import Attack, Images, Labels, Poisoning, Rows, pick

__all__ = ["Wrapped", "pick_covers", "require_relabelling"]


class Wrapped(Attack):
    """Everything as the wrapped ``trigger`` has it; those that wrap change what is theirs."""

    trigger: Attack

    def stamp(self, images: Images) -> Images:
        """Return copies with the wrapped trigger as it is at test time."""
        return self.trigger.stamp(images)

    def imprint(self, images: Images) -> Images:
        """Return copies with the wrapped trigger as poisoned training images carry it."""
        return self.trigger.imprint(images)

    def cover(self, images: Images, generator: np.random.Generator) -> Images:
        """Return copies as the wrapped trigger's cover rows are trained on."""
        return self.trigger.cover(images, generator)

    def target_of(self, labels: Labels) -> Labels:
        """Return the class that the wrapped trigger leads each true class to."""
        return self.trigger.target_of(labels)

    def applies_to(self, labels: Labels) -> Bool[np.ndarray, " n"]:
        """Tell which true classes the wrapped trigger is measured on."""
        return self.trigger.applies_to(labels)

    @property
    def changes_labels(self) -> bool:
        """Whether the wrapped trigger relabels what it poisons."""
        return self.trigger.changes_labels

    def rate_base(self, labels: Labels) -> int:
        """Return how many rows the wrapped trigger's rate is a share of."""
        return self.trigger.rate_base(labels)

    def choose_covers(self, labels: Labels, index: Rows, generator: np.random.Generator) -> Rows:
        """Choose the rows that the wrapped trigger covers."""
        return self.trigger.choose_covers(labels, index, generator)

    def prepare(self, images: Images, plan: Poisoning) -> Float32[np.ndarray, "m c h w"]:
        """Return the images as the wrapped trigger prepares them."""
        return self.trigger.prepare(images, plan)


def require_relabelling(trigger: Attack, name: str) -> None:
    """Refuse a clean-label trigger where labels are to be changed.

    Raises:
        ValueError: If the trigger's attack leaves labels as they are.
    """
    if not trigger.changes_labels:
        raise ValueError(
            f"trigger: {name} relabels what it poisons, and {trigger.name} must not be relabelled"
        )


def pick_covers(
    eligible: Bool[np.ndarray, " n"], index: Rows, ratio: float, generator: np.random.Generator
) -> Rows:
    """Draw ``ratio`` cover rows for each poisoned one, from the eligible rows that are not poisoned.

    Raises:
        ValueError: If there are fewer such rows.
    """
    free = eligible.copy()
    free[index] = False
    rows, wanted = np.flatnonzero(free).astype(np.int64), round(ratio * len(index))
    if wanted > len(rows):
        raise ValueError(
            f"covers: {ratio} for each of {len(index)} poisoned images is {wanted}, but only {len(rows)} "
            "images are left for it; lower the rate or the ratio"
        )
    return pick(rows, wanted, generator)
