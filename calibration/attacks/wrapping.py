"""Attacks around another attack's trigger: another target rule, other labels, another way to train it in.

They nest. A rule for classes (all to all, source-specific) goes inside, a treatment of labels (low
confidence, label smoothing, entropy manipulation) around it; the other way round is refused, because the
outer plan would undo the inner one.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float32

from calibration.attacks.base import Attack, Images, Labels, Poisoning, Rows, pick

__all__ = ["Relabelling", "Wrapped", "pick_covers", "require_relabelling"]


class Wrapped(Attack):
    """Everything as the wrapped ``trigger`` has it; those that wrap change what is theirs."""

    outermost: ClassVar[bool] = False
    """Whether its plan is its own, so that no wrapper that plans anew may be put around it."""

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

    def candidates(self, labels: Labels) -> Bool[np.ndarray, " n"]:
        """Tell which rows the wrapped attack may poison."""
        return self.trigger.candidates(labels)

    def rate_base(self, labels: Labels) -> int:
        """Return how many rows the wrapped trigger's rate is a share of."""
        return self.trigger.rate_base(labels)

    def choose_covers(self, labels: Labels, index: Rows, generator: np.random.Generator) -> Rows:
        """Choose the rows that the wrapped trigger covers."""
        return self.trigger.choose_covers(labels, index, generator)

    def plan(self, labels: Labels, rate: float, generator: np.random.Generator) -> Poisoning:
        """Choose and label rows as the wrapped attack does."""
        return self.trigger.plan(labels, rate, generator)

    def prepare(self, images: Images, plan: Poisoning) -> Float32[np.ndarray, "m c h w"]:
        """Return the images as the wrapped trigger prepares them."""
        return self.trigger.prepare(images, plan)


class Relabelling(Wrapped):
    """One that wraps a trigger and decides by itself which rows are poisoned, and which are covers."""

    def candidates(self, labels: Labels) -> Bool[np.ndarray, " n"]:
        """Tell which rows may be poisoned: those of the classes that it applies to."""
        return Attack.candidates(self, labels)

    def plan(self, labels: Labels, rate: float, generator: np.random.Generator) -> Poisoning:
        """Choose which rows to poison and label them; see :meth:`Attack.plan`."""
        return Attack.plan(self, labels, rate, generator)


def require_relabelling(trigger: Attack, name: str, *, planned_anew: bool = True) -> None:
    """Refuse a trigger whose labels must not be changed, or whose plan would be undone.

    Args:
        trigger: What is to be wrapped.
        name: The attack that wraps it.
        planned_anew: Whether that one plans by itself.

    Raises:
        ValueError: If the trigger's attack leaves labels as they are, or has to be outermost.
    """
    if not trigger.changes_labels:
        raise ValueError(
            f"trigger: {name} relabels what it poisons, and {trigger.name} must not be relabelled"
        )
    inner: Attack = trigger
    while planned_anew and isinstance(inner, Wrapped):
        if inner.outermost:
            raise ValueError(
                f"trigger: {name} would undo the plan of {inner.name}; wrap them the other way round"
            )
        inner = inner.trigger


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
