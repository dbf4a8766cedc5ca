"""Classes whose accuracy fell by more than chance, which an average over all classes hides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64
from scipy import stats

from calibration.attacks.base import Labels
from calibration.evaluation.numbers import Predictions
from calibration.wording import number, printable

__all__ = ["Fallen", "adjusted_by_holm", "fallen_classes", "fallen_note", "fallen_record"]

_NAMED = 8


@dataclass(frozen=True)
class Fallen:
    """One class.

    Attributes:
        label: It.
        before: Images of it that were predicted as it.
        after: Images of it that are now.
        of: Images of it.
        p_value: Chance of such a fall where nothing but chance is at work, all classes counted.
    """

    label: int
    before: int
    after: int
    of: int
    p_value: float


def fallen_classes(
    before: Predictions, after: Predictions, labels: Labels, level: float = 0.05
) -> tuple[Fallen, ...]:
    r"""Return the classes whose accuracy fell significantly, the surest first.

    Of each class's images, b were right and are wrong now, c the other way round. If both are as likely,

    .. math:: p = P(B \ge b), \qquad B \sim \mathrm{Binomial}(b + c, 1/2)

    which is McNemar's exact test, of one side. Holm's correction holds the chance that any class is named
    without cause to ``level``, over all classes that there are images of.

    Args:
        before: What was predicted.
        after: What is now.
        labels: The images' classes.
        level: The chance.

    Examples:
        >>> labels = np.zeros(14, np.int64)
        >>> fallen_classes(np.repeat([0, 1], [12, 2]), np.repeat([0, 1], [1, 13]), labels)
        (Fallen(label=0, before=12, after=1, of=14, p_value=0.00048828125),)

    References:
        McNemar, Note on the sampling error of the difference between correlated proportions or percentages,
        Psychometrika 1947. Holm, A simple sequentially rejective multiple test procedure, Scandinavian
        Journal of Statistics 1979.
    """
    was, now, found = before == labels, after == labels, np.unique(labels)
    lost, gained = (
        np.array([(turned & (labels == label)).sum() for label in found])
        for turned in (was & ~now, now & ~was)
    )
    chances = adjusted_by_holm(stats.binom.sf(lost - 1, lost + gained, 0.5))
    fallen = [
        Fallen(int(label), int(was[rows].sum()), int(now[rows].sum()), int(rows.sum()), float(chance))
        for label, chance, rows in zip(found, chances, found[:, None] == labels, strict=True)
        if chance < level
    ]
    return tuple(sorted(fallen, key=lambda one: (one.p_value, one.label)))


def adjusted_by_holm(p_values: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    """Return p-values so raised that each may be held against the level that all are to keep together.

    Examples:
        >>> adjusted_by_holm(np.array([0.01, 0.04, 0.03])).round(9).tolist()
        [0.03, 0.06, 0.06]
    """
    order = np.argsort(p_values, kind="stable")
    raised = p_values[order] * np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(np.maximum.accumulate(raised), 1.0)
    return adjusted


def fallen_note(fallen: Sequence[Fallen], names: Sequence[str] | None) -> str:
    """Return them in one line; nothing of none."""
    if not fallen:
        return ""
    told = [
        f"{_named(one.label, names)} ({one.before} to {one.after} of {one.of})" for one in fallen[:_NAMED]
    ]
    more = f" and {len(fallen) - _NAMED} more" if len(fallen) > _NAMED else ""
    return (
        f"accuracy fell by more than chance on class {', '.join(told)}{more}; exact paired tests over all "
        f"classes, largest p {number(fallen[-1].p_value)}"
    )


def fallen_record(fallen: Sequence[Fallen]) -> list[dict[str, Any]]:
    """Return them as plain values."""
    return [asdict(one) for one in fallen]


def _named(label: int, names: Sequence[str] | None) -> str:
    return f"{label} {printable(names[label])}" if names and label < len(names) else str(label)
