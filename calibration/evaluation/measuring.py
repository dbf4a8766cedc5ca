"""Runs a model over clean and stamped images, a batch at a time, and counts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Int64

from calibration.attacks.amplified import amplified
from calibration.attacks.base import Attack, Images, Labels
from calibration.errors import DataError
from calibration.evaluation.numbers import (
    Share,
    UnderTrigger,
    accuracy_by_class,
    share,
    under_trigger,
)
from calibration.scoring import batch_size

__all__ = ["COPIES", "Answer", "Known", "Measured", "Outcome", "Task", "check_targets", "measure", "stamped"]

COPIES = (4, 9)
"""Copies of a patch at test time, besides one: a repair that only weakened the trigger shows there."""

Answer = Callable[[Images], Float[np.ndarray, "n k"]]
Take = Callable[[Int64[np.ndarray, " m"]], Images]

_MISFITS = (ValueError, TypeError, IndexError, RuntimeError)
"""What an attack raises over images of another shape than its own."""


@dataclass(frozen=True, eq=False)
class Known:
    """A trigger to try.

    Attributes:
        name: For the report; nobody else's.
        attack: It; images as the model takes them.
    """

    name: str
    attack: Attack


@dataclass(frozen=True, eq=False)
class Task:
    """What models are measured on.

    Attributes:
        take: Gives the images of some rows, as the model takes them, channels first.
        labels: Class of each row; what stands for it where none was given.
        labelled: Whether they were given; else no accuracy is told.
        classes: k.
        triggers: To try.
        confidence: Of all intervals.
    """

    take: Take
    labels: Labels
    labelled: bool
    classes: int
    triggers: Sequence[Known] = ()
    confidence: float = 0.95

    def passes(self) -> int:
        """Return how many images go through each model, about."""
        stamped = sum(int(known.attack.applies_to(self.labels).sum()) for known in self.triggers)
        return len(self.labels) + stamped * (1 + len(COPIES))


@dataclass(frozen=True)
class Outcome:
    """What a model does under one trigger.

    Attributes:
        once: With the trigger as it is; None where it applies to no image.
        amplified: With more copies of a patch, by their number; empty for triggers that are no patch.
        acc_non_target: Accuracy on clean images of the classes other than the target.
    """

    once: UnderTrigger | None
    amplified: Mapping[int, UnderTrigger] = field(default_factory=dict)
    acc_non_target: Share | None = None


@dataclass(frozen=True, eq=False)
class Measured:
    """What one model does.

    Attributes:
        answers: To the clean images.
        acc: Share of clean images that are given their class; None without labels.
        by_class: The same for each class; empty without labels.
        triggers: One for each.
    """

    answers: Float[np.ndarray, "n k"]
    acc: Share | None
    by_class: tuple[Share, ...]
    triggers: tuple[Outcome, ...]

    @property
    def predictions(self) -> Int64[np.ndarray, " n"]:
        """Its classes of the clean images."""
        highest: Int64[np.ndarray, " n"] = self.answers.argmax(axis=1)
        return highest


def measure(answer: Answer, task: Task, step: Callable[[int], None] = lambda count: None) -> Measured:
    """Return what a model does.

    Args:
        answer: The model.
        task: What to do.
        step: Told of images that were done.

    Raises:
        DataError: If a trigger does not fit the images.
    """
    everything = np.arange(len(task.labels), dtype=np.int64)
    answers = np.concatenate(list(_answers(answer, task, everything, step)))
    right = answers.argmax(axis=1) == task.labels
    outcomes = tuple(_outcome(answer, task, known, right, step) for known in task.triggers)
    if not task.labelled:
        return Measured(answers, None, (), outcomes)
    by_class = accuracy_by_class(answers.argmax(axis=1), task.labels, task.classes, task.confidence)
    return Measured(answers, share(right, task.confidence), by_class, outcomes)


def _outcome(
    answer: Answer, task: Task, known: Known, right: Bool[np.ndarray, " n"], step: Callable[[int], None]
) -> Outcome:
    targets = np.unique(known.attack.target_of(task.labels))
    others = None
    if task.labelled and len(targets) == 1:
        others = share(right[task.labels != targets[0]], task.confidence)
    rows = np.flatnonzero(known.attack.applies_to(task.labels))
    if not len(rows):
        return Outcome(None, acc_non_target=others)

    def under(attack: Attack) -> UnderTrigger:
        parts = _answers(answer, task, rows, step, Known(known.name, attack))
        predictions = np.concatenate([part.argmax(axis=1) for part in parts])
        return under_trigger(predictions, task.labels[rows], known.attack, task.confidence)

    once = under(known.attack)
    grids = {copies: _grid(known.attack, copies, task.take(rows[:1])) for copies in COPIES}
    return Outcome(once, {copies: under(grid) for copies, grid in grids.items() if grid is not None}, others)


def _grid(attack: Attack, copies: int, image: Images) -> Attack | None:
    """Return the attack with that many copies; None where it has no patch, or they have no room."""
    try:
        grid = amplified(attack, copies)
        grid.stamp(image)
    except ValueError:
        return None
    return grid


def _answers(
    answer: Answer,
    task: Task,
    rows: Int64[np.ndarray, " m"],
    step: Callable[[int], None],
    known: Known | None = None,
) -> Iterator[Float[np.ndarray, "b k"]]:
    size = batch_size(task.take(rows[:1]).nbytes)
    for start in range(0, len(rows), size):
        some = rows[start : start + size]
        images = task.take(some)
        yield answer(images if known is None else stamped(known, images))
        step(len(some))


def check_targets(known: Iterable[Known], classes: int) -> None:
    """Refuse triggers that lead where the model has nothing: their success would always be 0.

    Raises:
        DataError: If one leads to a class that there is not.
    """
    labels = np.arange(classes, dtype=np.int64)
    for each in known:
        target = int(each.attack.target_of(labels).max())
        if target >= classes:
            raise DataError(
                f"trigger {each.name} leads to class {target}, the model has {classes} (0 to {classes - 1}); "
                f"give one that was made for this model"
            )


def stamped(known: Known, images: Images) -> Images:
    """Return images with a trigger on.

    Raises:
        DataError: If it was made for images of another shape.
    """
    try:
        changed = known.attack.stamp(images)
    except _MISFITS as error:
        said = " ".join(str(error).split())[:200]
        raise DataError(
            f"trigger {known.name} cannot be put on images of {' x '.join(map(str, images.shape[1:]))}: "
            f"{said}; give one that was made for this model"
        ) from error
    if changed.shape != images.shape:
        raise DataError(
            f"trigger {known.name} makes images of {changed.shape[1:]} out of {images.shape[1:]}; give one "
            f"that was made for this model"
        )
    return changed
