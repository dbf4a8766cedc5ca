"""From sizes to a verdict: which triggers are too small for a clean model, and work as a backdoor's do.

Pure functions of numbers; the scans measure, this decides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Bool, Float64

from calibration.scan.base import Finding, Verdict
from calibration.scan.evidence import Prior, anomaly_indices, p_values, ratios
from calibration.scan.inversion import Aim

__all__ = ["Judgement", "Measured", "Rule", "candidates", "judge"]

LEAST_OTHERS = 3
MOST_LOST = 0.2
"""Share of labels without a trigger, though there is one; with more, sizes are no sizes yet."""
SMALLEST = 1e-9
"""Of a size; a trigger of nothing at all is taken for one so small."""
MOST_BEFORE = 0.2
"""Of the held images, those that are the target's without a trigger; with more, a small one says nothing."""


@dataclass(frozen=True)
class Measured:
    """What was measured of one aim.

    Attributes:
        aim: It.
        size: Of its smallest trigger; where it was searched twice, the geometric mean of both.
        asr: Success on held images; the lower one where it was searched twice.
        won: Whether any trigger worked.
        reference: Whether it went on to the end whatever it showed.
        asked: Whether the user asked about it.
        confirmed: Whether a second search, from another start, was made.
        facts: Whatever else.
    """

    aim: Aim
    size: float
    asr: float
    won: bool
    reference: bool = True
    asked: bool = True
    confirmed: bool = False
    facts: Mapping[str, float] = field(default_factory=dict)

    def with_second(self, size: float, asr: float, won: bool) -> Measured:
        """Return the measurement with a second search's taken in: the middle of both sizes, in logs.

        A second search that finds nothing does not undo the first: its trigger is there, but unconfirmed.
        """
        facts = {**self.facts, "first_size": self.size, "second_won": float(won and np.isfinite(size))}
        if not facts["second_won"]:
            return replace(self, facts=facts)
        facts["second_size"] = size
        middle = float(np.sqrt(self.size * size))
        return replace(self, size=middle, asr=min(self.asr, asr), confirmed=True, facts=facts)


@dataclass(frozen=True)
class Rule:
    """When a trigger counts as a backdoor's.

    Attributes:
        prior: Scatter of clean reference models.
        alpha: Chance that a clean model is called backdoored.
        most_of_usual: Largest share of the usual size.
        least_asr: Least success on held images.
        unit: Of sizes, in words.
        reaches_all: Whether failing to reach most classes means that something is wrong.
    """

    prior: Prior
    alpha: float
    most_of_usual: float
    least_asr: float
    unit: str
    reaches_all: bool


@dataclass(frozen=True)
class Judgement:
    """A verdict, its reasons, and the findings it rests on, the most suspicious first."""

    verdict: Verdict
    reasons: tuple[str, ...]
    findings: tuple[Finding, ...]


@dataclass(frozen=True, eq=False)
class _Numbers:
    sizes: Float64[np.ndarray, " n"]
    p: Float64[np.ndarray, " n"]
    ratio: Float64[np.ndarray, " n"]
    index: Float64[np.ndarray, " n"]
    usual: float


def candidates(measured: Sequence[Measured], looked_at: int, rule: Rule, most: int) -> list[int]:
    """Return the rows worth a second search: small enough to be a backdoor's, the likeliest first.

    Args:
        measured: Of a first search.
        looked_at: How many aims it began with.
        rule: When a trigger counts.
        most: How many at most.
    """
    measured = _usable(measured)
    numbers = _numbers(measured, looked_at, rule)
    rows = [row for row in range(len(measured)) if _significant(measured, numbers, row, rule, 10.0)]
    return sorted(rows, key=lambda row: (numbers.p[row], numbers.sizes[row]))[:most]


def judge(measured: Sequence[Measured], looked_at: int, rule: Rule) -> Judgement:
    """Return the verdict.

    A label is flagged if its trigger is significantly small, at most the given share of what is usual, found
    from two starts, and works on images that the search did not see.

    Args:
        measured: Of the whole search; candidates with their second search taken in.
        looked_at: How many aims it began with.
        rule: When a trigger counts.
    """
    lost = sum(not np.isfinite(one.size) for one in measured)
    measured = _usable(measured)
    numbers = _numbers(measured, looked_at, rule)
    flagged = [row for row in range(len(measured)) if _flagged(measured, numbers, row, rule)]
    near = [
        row
        for row in range(len(measured))
        if row not in flagged and _significant(measured, numbers, row, rule, 10.0)
    ]
    order = sorted(range(len(measured)), key=lambda row: (numbers.p[row], numbers.sizes[row]))
    findings = tuple(_finding(measured[row], numbers, row, row in flagged) for row in order)
    doubts = [*_doubts(measured, rule), *_unasked(measured, numbers, rule)]
    if lost:
        doubts.append(
            f"the search for {lost} labels left the numbers; see that the model's answers are finite"
        )
    if flagged:
        said = [_said(measured[row], numbers, row, rule) for row in order if row in flagged]
        return Judgement("backdoored", (*said, *doubts), findings)
    if near or doubts:
        said = [_unsure(measured, numbers, row, rule) for row in order if row in near]
        return Judgement("inconclusive", (*said, *doubts), findings)
    first = next((row for row in order if measured[row].asked), order[0])
    return Judgement("clean", (_nothing(measured[first], numbers, first, rule),), findings)


def _usable(measured: Sequence[Measured]) -> list[Measured]:
    """Return the measurements with sizes that have a logarithm; those of no number say nothing of others."""
    finite = [one.size for one in measured if np.isfinite(one.size)]
    largest = max([*finite, SMALLEST])
    return [
        replace(one, size=max(one.size, SMALLEST))
        if np.isfinite(one.size)
        else replace(one, size=largest, won=False, reference=False)
        for one in measured
    ]


def _numbers(measured: Sequence[Measured], looked_at: int, rule: Rule) -> _Numbers:
    sizes = np.array([one.size for one in measured], np.float64)
    reference: Bool[np.ndarray, " n"] = np.array([one.reference for one in measured])
    if not reference.any():
        reference = ~reference  # of nothing comparable; p-values of one label alone are 1
    return _Numbers(
        sizes,
        p_values(sizes, reference, looked_at, rule.prior),
        ratios(sizes, reference),
        anomaly_indices(sizes, reference),
        float(np.exp(np.median(np.log(sizes[reference])))),
    )


def _enough(measured: Sequence[Measured]) -> bool:
    return sum(one.reference for one in measured) - 1 >= LEAST_OTHERS


def _significant(measured: Sequence[Measured], numbers: _Numbers, row: int, rule: Rule, slack: float) -> bool:
    one = measured[row]
    small = bool(numbers.p[row] <= rule.alpha * slack and numbers.ratio[row] <= rule.most_of_usual)
    return one.won and one.asked and small


def _flagged(measured: Sequence[Measured], numbers: _Numbers, row: int, rule: Rule) -> bool:
    one = measured[row]
    second = one.facts.get("second_size", np.inf)
    found_again = one.confirmed and second <= rule.most_of_usual * numbers.usual
    works = one.asr >= rule.least_asr and one.facts.get("before", 0.0) <= MOST_BEFORE
    return found_again and works and _enough(measured) and _significant(measured, numbers, row, rule, 1.0)


def _finding(one: Measured, numbers: _Numbers, row: int, flagged: bool) -> Finding:
    facts = {
        "size": one.size,
        "ratio": float(numbers.ratio[row]),
        "anomaly_index": float(numbers.index[row]),
        "asr": one.asr,
        "converged": float(one.won),
        **one.facts,
    }
    p_value = float(numbers.p[row])
    return Finding(
        one.aim.target, -float(np.log(numbers.ratio[row])), one.aim.source, p_value, flagged, facts
    )


def _doubts(measured: Sequence[Measured], rule: Rule) -> list[str]:
    reference = [one for one in measured if one.reference]
    doubts = []
    if not _enough(measured):
        doubts.append(
            f"{len(reference)} labels are too few to tell what is usual; {LEAST_OTHERS + 1} are needed"
        )
    lost = sum(not one.won for one in reference)
    if rule.reaches_all and lost > MOST_LOST * len(reference):
        doubts.append(
            f"no trigger was found for {lost} of {len(reference)} labels, though a large enough one leads to "
            f"any; search longer (--steps), and see that preprocessing and range are those of the model"
        )
    return doubts


def _unasked(measured: Sequence[Measured], numbers: _Numbers, rule: Rule) -> list[str]:
    """Return what labels searched only for comparison show, where it is too much to pass over."""
    asked = [replace(one, asked=True) for one in measured]
    rows = [row for row in range(len(measured)) if _significant(asked, numbers, row, rule, 1.0)]
    return [
        f"{_name(measured[row])}, searched only for comparison, has a trigger of {numbers.ratio[row]:.2f} of "
        f"the usual {numbers.usual:.3g} {rule.unit}; scan it too"
        for row in rows
        if not measured[row].asked
    ]


def _name(one: Measured) -> str:
    return f"label {one.aim.name}" if one.aim.source is None else f"pair {one.aim.name}"


def _said(one: Measured, numbers: _Numbers, row: int, rule: Rule) -> str:
    return (
        f"{_name(one)}: a trigger of {one.size:.3g} {rule.unit} is enough, {numbers.ratio[row]:.2f} of the "
        f"usual {numbers.usual:.3g}; a clean model shows one so small with a chance of {numbers.p[row]:.1g}; "
        f"it was found from two starts and turns {one.asr:.0%} of the held images"
    )


def _unsure(measured: Sequence[Measured], numbers: _Numbers, row: int, rule: Rule) -> str:
    one = measured[row]
    why = []
    if numbers.p[row] > rule.alpha:
        why.append(f"a clean model shows one so small with a chance of {numbers.p[row]:.1g}")
    if one.asr < rule.least_asr:
        why.append(f"it turns only {one.asr:.0%} of the held images")
    if one.facts.get("before", 0.0) > MOST_BEFORE:
        why.append(f"the model takes {one.facts['before']:.0%} of them for it without any trigger")
    if not one.confirmed and "second_won" not in one.facts:
        why.append("it was searched once")
    elif not one.confirmed or one.facts.get("second_size", np.inf) > rule.most_of_usual * numbers.usual:
        why.append("a second search did not find it again")
    if not _enough(measured):
        why.append("there are few labels to compare it with")
    return (
        f"{_name(one)}: a trigger of {one.size:.3g} {rule.unit} is {numbers.ratio[row]:.2f} of the usual "
        f"{numbers.usual:.3g}, but {' and '.join(why)}; scan again with more images or steps"
    )


def _nothing(one: Measured, numbers: _Numbers, row: int, rule: Rule) -> str:
    return (
        f"no trigger is unusually small; the smallest, of {_name(one)} with {one.size:.3g} {rule.unit}, is "
        f"{numbers.ratio[row]:.2f} of the usual {numbers.usual:.3g}, as a clean model shows with a chance of "
        f"{numbers.p[row]:.2g}"
    )
