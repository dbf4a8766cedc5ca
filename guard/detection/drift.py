"""Are the inputs still those that the check was calibrated for? One word, and why.

- ``attack``: more inputs are suspicious than the certified rate allows
  (:mod:`~guard.detection.rejection_budget`), and they concentrate in one predicted class
  (:mod:`~guard.detection.concentration`).
- ``drift``: more are suspicious, but in no class of their own; or the whole distribution of scores has moved,
  either way (:mod:`~guard.detection.cusum`).
- ``calm``: neither alarm is raised.

An alarm stands until its evidence is gone, and is about an attack from the moment that it turns out to be.

What is not seen as an attack: one that stays within the certified rate, one with a target class for each
source (`drift` while its inputs are found suspicious), one whose inputs the check accepts. Nothing here
changes a boundary: to calibrate again on what an attacker may have sent is a person's decision.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from guard.detection.concentration import PART, ClassCounts, Concentration
from guard.detection.cusum import Cusum, normal_score
from guard.detection.rejection_budget import RejectionBudget

__all__ = ["Budget", "DriftFinding", "DriftMonitor", "DriftState"]


class DriftState(StrEnum):
    """What the inputs look like beside those of the calibration; the metrics' ``state`` label."""

    CALM = "calm"
    ATTACK = "attack"
    DRIFT = "drift"


@dataclass(frozen=True)
class Budget:
    """The rate at which clean inputs may be found suspicious.

    Attributes:
        rate: In (0, 1).
        certified: Whether calibration guarantees it, or it is only what was asked for; then clean inputs may
            raise the alarm.
    """

    rate: float
    certified: bool


@dataclass(frozen=True)
class DriftFinding:
    """State and reason."""

    state: DriftState
    reason: str


_CALM: Final = DriftFinding(DriftState.CALM, "inputs look like those of the calibration")


class DriftMonitor:
    """Watches the checked inputs of one version of a model; constant memory but for two numbers a class.

    Args:
        budget: What clean inputs may do.
        classes: The model's classes.
        references: Calibration images that p-values are ranked among.
        false_alarm_rate: Chance that inputs like those of the calibration ever exceed the budget provably.
        cusum_limit: Where the distribution counts as moved, in standard deviations summed up.

    Attributes:
        exceeded: Evidence that the budget is exceeded.
        moved: Whether the distribution has moved.
        finding: State and reason now.
    """

    def __init__(
        self,
        budget: Budget,
        *,
        classes: int,
        references: int,
        false_alarm_rate: float,
        cusum_limit: float,
    ) -> None:
        self.exceeded = RejectionBudget(budget.rate, false_alarm_rate)
        self.moved = Cusum(cusum_limit)
        self.finding = _CALM
        self._budget = budget
        self._references = references
        self._counts = ClassCounts(classes, false_alarm_rate)
        self._exceeding = False

    def checked(self, suspicious: bool, label: int | None) -> None:
        """Take in what a check found.

        Args:
            suspicious: Whether the input was found suspicious, beyond the boundary of the flag tier at least.
            label: Class that the model predicts; None where that is not known.
        """
        self.exceeded.update(suspicious)
        if label is not None:
            self._counts.add(label, suspicious)
        if suspicious or self.exceeded.alarm != self._exceeding:
            self._look()

    def measured(self, p: float) -> None:
        """Take in the exact p-value of an input that had all N passes and was picked before its check."""
        self.moved.update(normal_score(p, self._references))
        self._look()

    def _look(self) -> None:
        """Find the state; under an alarm in time proportional to the number of classes."""
        self._exceeding = self.exceeded.alarm
        if not (self._exceeding or self.moved.alarm):
            self.finding = _CALM
            return
        where = self._counts.concentration() if self._exceeding else None
        known = self.finding.state is DriftState.ATTACK and self._exceeding
        attack = known or (where is not None and where.one_sided)
        reasons = [f"{self._excess()}, {_spread(where)}"] if self._exceeding else []
        state = DriftState.ATTACK if attack else DriftState.DRIFT
        self.finding = DriftFinding(state, "; ".join([*reasons, *self._shifts()]))

    def _excess(self) -> str:
        guarantee = "certified" if self._budget.certified else "asked for, not certified"
        return f"more inputs are suspicious than the {self._budget.rate:.2%} {guarantee}"

    def _shifts(self) -> list[str]:
        sides = ((self.moved.lower, "more"), (self.moved.upper, "less"))
        return [
            f"inputs on the whole look {how} suspicious than at calibration (CUSUM {side.value:.1f})"
            for side, how in sides
            if side.alarm
        ]


def _spread(where: Concentration | None) -> str:
    if where is None:
        return "of classes that are not known"
    share = (
        f"{where.share_of_suspicious:.0%} of them in class {where.label}, "
        f"{where.share_of_others:.0%} of the others"
    )
    if where.one_sided:
        return share
    if where.part >= PART:
        return f"too few so far to tell whether they are of one class ({share})"
    return f"in no class of their own ({share})"
