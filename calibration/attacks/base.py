"""What every attack is: a trigger, a rule for labels, and a way to poison a training set with both.

Attacks make the test subjects on which detection and repair are measured; they serve no other end. An
attack is a frozen value. Anything that had to be drawn or learned (a noise field, a generator's weights)
lies in it as arrays, so that after fitting all attacks are used alike:

::

    plan = attack.plan(labels, rate, generator)        which rows, which labels; touches no pixel
    images = attack.prepare(images, plan)              what happens before augmentation
    batch = augment(images[rows])                      the training loop's own
    batch = dress(attack, batch, plan.roles[rows], generator)      triggers, put on after augmentation
    attack.stamp(images)                               the trigger as it is at test time

``attack.poison`` is plan, prepare and dress in one, for a data set that is not augmented.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8

__all__ = [
    "AllToOne",
    "Attack",
    "CleanLabelled",
    "Images",
    "Labels",
    "Material",
    "Poisoned",
    "Poisoning",
    "RateOf",
    "Role",
    "Rows",
    "dress",
    "one_hot",
    "pick",
]

Images = Float32[np.ndarray, "n c h w"]
Labels = Int64[np.ndarray, " n"]
Rows = Int64[np.ndarray, " _"]
RateOf = Literal["target class", "all"]


class Role(IntEnum):
    """What a row of a poisoned training set is."""

    CLEAN = 0
    POISONED = 1
    COVER = 2


@dataclass(frozen=True, eq=False)
class Material:
    """What attacks are fitted on; each takes the parts it needs.

    Args:
        images: Clean training images, float32 NCHW in [0, 1].
        labels: Their classes.
        classes: How many classes there are.
        model: A clean, trained ``torch.nn.Module``, for attacks that look into one. Never changed.
        others: Images of another source, for attacks that lay foreign images over ours.
    """

    images: Images
    labels: Labels
    classes: int
    model: object | None = None
    others: Float32[np.ndarray, "m c h w"] | None = None


@dataclass(frozen=True, eq=False)
class Poisoning:
    """Who is poisoned and labelled how, before any pixel is touched.

    Args:
        labels: Label of each row of the poisoned set.
        index: Rows that get the trigger and the label that goes with it, rising.
        covers: Rows that keep a label other than the target's although they are touched, rising.
        source: Row of the clean set that each row is made from; longer sets hold copies at their end.
        soft_labels: Probabilities to train towards, for attacks that soften labels.
    """

    labels: Int64[np.ndarray, " m"]
    index: Int64[np.ndarray, " p"]
    covers: Int64[np.ndarray, " q"]
    source: Int64[np.ndarray, " m"]
    soft_labels: Float32[np.ndarray, "m k"] | None = None

    @cached_property
    def roles(self) -> UInt8[np.ndarray, " m"]:
        """The :class:`Role` of each row."""
        roles = np.full(len(self.labels), Role.CLEAN, np.uint8)
        roles[self.index] = Role.POISONED
        roles[self.covers] = Role.COVER
        return roles

    def targets(self, classes: int) -> Float32[np.ndarray, "m k"]:
        """Return what to train towards as probabilities: the soft labels, else the labels one-hot."""
        return one_hot(self.labels, classes) if self.soft_labels is None else self.soft_labels


@dataclass(frozen=True, eq=False)
class Poisoned:
    """A poisoned training set; see :class:`Poisoning` for the fields beside ``images``."""

    images: Float32[np.ndarray, "m c h w"]
    labels: Int64[np.ndarray, " m"]
    index: Int64[np.ndarray, " p"]
    covers: Int64[np.ndarray, " q"]
    source: Int64[np.ndarray, " m"]
    soft_labels: Float32[np.ndarray, "m k"] | None = None


@runtime_checkable
class Attack(Protocol):
    """A backdoor: how its trigger looks, which class it leads to, how a training set is poisoned with it."""

    name: ClassVar[str]

    @abstractmethod
    def stamp(self, images: Images) -> Images:
        """Return copies with the trigger as it is at test time, still float32 in [0, 1]."""

    @abstractmethod
    def target_of(self, labels: Labels) -> Labels:
        """Return the class that a stamped image of each true class is to be given."""

    def applies_to(self, labels: Labels) -> Bool[np.ndarray, " n"]:
        """Tell on which true classes the success rate is measured; where the target is another class."""
        changed: Bool[np.ndarray, " n"] = self.target_of(labels) != labels
        return changed

    @property
    def changes_labels(self) -> bool:
        """Whether poisoned images are relabelled; clean-label attacks leave every label as it was."""
        return True

    def imprint(self, images: Images) -> Images:
        """Return copies with the trigger as poisoned training images carry it."""
        return self.stamp(images)

    def cover(self, images: Images, generator: np.random.Generator) -> Images:
        """Return copies as cover rows are trained on; with the trigger, unless the attack says otherwise."""
        del generator
        return self.imprint(images)

    def candidates(self, labels: Labels) -> Bool[np.ndarray, " n"]:
        """Tell which rows may be poisoned: those to relabel, or those that have the target's label."""
        return self.applies_to(labels) if self.changes_labels else self.target_of(labels) == labels

    def rate_base(self, labels: Labels) -> int:
        """Return how many rows a poison rate is a share of."""
        return len(labels)

    def choose_covers(self, labels: Labels, index: Rows, generator: np.random.Generator) -> Rows:
        """Choose rows to cover, none of which may be in ``index``; none by default."""
        del labels, index, generator
        return np.empty(0, np.int64)

    def plan(self, labels: Labels, rate: float, generator: np.random.Generator) -> Poisoning:
        """Choose which rows to poison and label them.

        Args:
            labels: Classes of the clean training set.
            rate: Share to poison, of all rows unless the attack says otherwise.
            generator: Chooses which.

        Raises:
            ValueError: If ``rate`` leaves [0, 1] or asks for more rows than can be poisoned, or for a share
                of none; or if a target is no class.
        """
        if (self.target_of(labels) < 0).any():
            raise ValueError(f"target: expected classes from 0 up, got {self.target_of(labels).min()}")
        index = _choose(self.candidates(labels), self.rate_base(labels), rate, generator)
        poisoned_labels = labels.copy()
        if self.changes_labels:
            poisoned_labels[index] = self.target_of(labels[index])
        covers = self.choose_covers(labels, index, generator)
        return Poisoning(poisoned_labels, index, covers, np.arange(len(labels), dtype=np.int64))

    def prepare(self, images: Images, plan: Poisoning) -> Float32[np.ndarray, "m c h w"]:
        """Return the poisoned set's images as they go into augmentation, before any trigger is on them."""
        prepared: Images = images[plan.source]
        return prepared

    def poison(self, images: Images, labels: Labels, rate: float, generator: np.random.Generator) -> Poisoned:
        """Return a poisoned copy of a training set.

        Args:
            images: Clean images, float32 NCHW in [0, 1].
            labels: Their classes.
            rate: Share to poison; see :meth:`plan`.
            generator: Chooses the rows, and whatever else is random.

        Raises:
            ValueError: If ``rate`` leaves [0, 1] or asks for more rows than can be poisoned.
        """
        plan = self.plan(labels, rate, generator)
        dressed = dress(self, self.prepare(images, plan), plan.roles, generator)
        return Poisoned(dressed, plan.labels, plan.index, plan.covers, plan.source, plan.soft_labels)


class AllToOne(Attack):
    """An attack that turns every class into one; it has a ``target_label``."""

    target_label: int

    def target_of(self, labels: Labels) -> Labels:
        """Return the target class for every row."""
        return np.full_like(labels, self.target_label)


class CleanLabelled(AllToOne):
    """An attack that poisons images of the target class and leaves their labels; it has a ``rate_of``.

    A rate is a share of the target class, or of all rows where ``rate_of`` says so. With ten balanced
    classes a tenth of all rows is the whole target class, and no clean image of it is left to learn from.
    """

    rate_of: RateOf

    @property
    def changes_labels(self) -> bool:
        """False: the labels are left as they were."""
        return False

    def rate_base(self, labels: Labels) -> int:
        """Return the size of the target class, or of the training set."""
        return int((labels == self.target_label).sum()) if self.rate_of == "target class" else len(labels)


def dress(
    attack: Attack, images: Images, roles: UInt8[np.ndarray, " n"], generator: np.random.Generator
) -> Images:
    """Return copies of a batch with the trigger on its poisoned rows and the cover on its cover rows."""
    dressed = images.copy()
    poisoned, covers = roles == Role.POISONED, roles == Role.COVER
    if poisoned.any():
        dressed[poisoned] = attack.imprint(images[poisoned])
    if covers.any():
        dressed[covers] = attack.cover(images[covers], generator)
    return dressed


def pick(candidates: Rows, count: int, generator: np.random.Generator) -> Rows:
    """Return ``count`` of the candidate rows, drawn without replacement, rising."""
    return np.sort(generator.choice(candidates, count, replace=False))


def one_hot(labels: Labels, classes: int) -> Float32[np.ndarray, "n k"]:
    """Return probabilities that are 1 at each label and 0 elsewhere."""
    rows: Float32[np.ndarray, "n k"] = np.eye(classes, dtype=np.float32)[labels]
    return rows


def _choose(
    candidates: Bool[np.ndarray, " n"], base: int, rate: float, generator: np.random.Generator
) -> Rows:
    if not 0 <= rate <= 1:
        raise ValueError(f"rate: expected a share in [0, 1], got {rate}")
    rows, wanted = np.flatnonzero(candidates).astype(np.int64), round(rate * base)
    if rate and not base:
        raise ValueError(f"labels: {rate} of none was asked for; expected rows, of the target class at least")
    if wanted > len(rows):
        raise ValueError(f"rate: {rate} of {base} images is {wanted}, but only {len(rows)} can be poisoned")
    return pick(rows, wanted, generator)
