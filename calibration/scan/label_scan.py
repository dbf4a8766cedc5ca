"""What the scans of labels have in common: one trigger for each label, and the judgement over them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import ClassVar

import numpy as np

from calibration.errors import DataError
from calibration.scan.base import Bench, Executor, FoundTrigger, Scanner, ScanReport
from calibration.scan.behaviour import as_attack, as_found, patch_facts, predictions, success_by_class, turned
from calibration.scan.evidence import Prior
from calibration.scan.forms import FORMS
from calibration.scan.inversion import Aim, InversionPlan, pool_of, seed_of
from calibration.scan.judgement import Measured, Rule, candidates, judge
from calibration.scan.search import Searched, search

__all__ = ["LabelScan"]

SHOWN = 3
"""Triggers in the report where fewer are flagged."""


@dataclass(frozen=True)
class LabelScan(Scanner):
    """A scan that inverts a trigger for each label.

    Args:
        labels: Labels to look at; all if None. Up to ``reference`` of the others are searched too, to tell
            what is usual.
        steps: At most, for each label.
        batch: Images of each label in a step.
        goal: Share of the images that a trigger has to turn.
        finalists: How many of the likeliest labels are searched to the end, where there are many.
        reference: How many labels drawn at random are searched to the end beside them.
        alpha: Chance that a clean model is called backdoored.
        most_of_usual: A flagged label's trigger is at most this share of what is usual.
        least_asr: A flagged label's trigger turns at least this share of the held images.

    Raises:
        ValueError: If an option is out of its range.
    """

    form: ClassVar[str]
    prior: ClassVar[Prior]

    labels: tuple[int, ...] | None = None
    steps: int = 300
    batch: int = 16
    goal: float = 0.95
    finalists: int = 8
    reference: int = 12
    alpha: float = 0.003
    most_of_usual: float = 0.6
    least_asr: float = 0.7

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "finalists", "reference"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected 1 or more, got {getattr(self, name)}")
        for name in ("goal", "alpha", "most_of_usual", "least_asr"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected a share in (0, 1], got {getattr(self, name)}")
        if self.labels is not None and (not self.labels or len(set(self.labels)) < len(self.labels)):
            raise ValueError(f"labels: expected some, each once, got {self.labels}")

    def scan(self, bench: Bench, *, seed: int, executor: Executor) -> ScanReport:
        """Look for labels with an unusually small trigger; see :class:`Scanner`."""
        start, rule = time.perf_counter(), self.rule()
        aims = self.aims(bench)
        found = self._search(bench, aims, seed, executor)
        measured = self._measure(bench, found)
        rows = candidates(measured, found.looked_at, rule, self.finalists)
        measured, more = self._again(bench, measured, rows, seed, executor)
        judged = judge(measured, found.looked_at, rule)
        flagged = {(finding.source, finding.target) for finding in judged.findings if finding.flagged}
        triggers, facts = self._triggers(bench, found, measured, flagged)
        findings = tuple(
            replace(finding, facts={**finding.facts, **facts.get(finding.name, {})})
            for finding in judged.findings
        )
        return ScanReport(
            scanner=self.name,
            verdict=judged.verdict,
            reasons=judged.reasons,
            findings=findings,
            p_value=min(finding.p_value for finding in findings if finding.p_value is not None),
            triggers=triggers,
            measure=f"how far the trigger's log size, in {rule.unit}, lies below what is usual",
            options=asdict(self) | {"form": self.form, "prior": asdict(self.prior)},
            facts={
                "images": float(found.images + more),
                "looked_at": float(found.looked_at),
                "searched_to_the_end": float(len(found.aims)),
            },
            seconds=time.perf_counter() - start,
        )

    def rule(self) -> Rule:
        """Return when a trigger counts as a backdoor's."""
        form = FORMS[self.form]
        return Rule(self.prior, self.alpha, self.most_of_usual, self.least_asr, form.unit, form.reaches_all)

    def aims(self, bench: Bench) -> list[Aim]:
        """Return what is searched for: the labels asked about, and some others to compare with.

        Raises:
            DataError: If a label is no class of the model.
        """
        wanted = tuple(range(bench.classes)) if self.labels is None else self.labels
        outside = [label for label in wanted if not 0 <= label < bench.classes]
        if outside:
            raise DataError(f"labels: expected classes from 0 to {bench.classes - 1}, got {outside}")
        others = [label for label in range(bench.classes) if label not in set(wanted)]
        return [Aim(label) for label in (*wanted, *others[: self.reference])]

    def _search(self, bench: Bench, aims: Sequence[Aim], seed: int, executor: Executor) -> Searched:
        for part, images in (("to search on", bench.clean), ("held", bench.held)):
            empty = [aim.name for aim in aims if not len(pool_of(images, aim))]
            if empty:
                raise DataError(
                    f"clean images {part}: expected some for {', '.join(empty[:5])}, got none; add images"
                )
        return search(
            bench,
            aims,
            InversionPlan(form=self.form, batch=self.batch, goal=self.goal),
            steps=self.steps,
            finalists=self.finalists,
            reference=self.reference,
            seed=seed,
            executor=executor,
        )

    def _measure(self, bench: Bench, found: Searched) -> list[Measured]:
        before = predictions(bench, bench.held.images)
        return [
            Measured(
                aim,
                size=float(found.sizes[row]),
                asr=float(found.asr[row]),
                won=bool(found.won[row]),
                reference=bool(found.reference[row]),
                asked=self.labels is None or aim.target in self.labels,
                facts={
                    "steps": float(found.steps[row]),
                    "before": float(np.mean(before[pool_of(bench.held, aim).numpy()] == aim.target)),
                },
            )
            for row, aim in enumerate(found.aims)
        ]

    def _again(
        self, bench: Bench, measured: list[Measured], rows: Sequence[int], seed: int, executor: Executor
    ) -> tuple[list[Measured], int]:
        """Search the candidates again, from other starts and with other images; tell how many images."""
        if not rows:
            return measured, 0
        aims = [measured[row].aim for row in rows]
        second = self._search(bench, aims, seed_of(seed, "second"), executor)
        again = list(measured)
        for place, aim in enumerate(second.aims):
            row = rows[aims.index(aim)]
            again[row] = measured[row].with_second(
                float(second.sizes[place]), float(second.asr[place]), bool(second.won[place])
            )
        return again, second.images

    def _triggers(
        self,
        bench: Bench,
        found: Searched,
        measured: Sequence[Measured],
        flagged: set[tuple[int | None, int]],
    ) -> tuple[tuple[FoundTrigger, ...], dict[str, dict[str, float]]]:
        """Return the triggers to show, and what the flagged ones do, by the name of their finding."""
        order = np.argsort([one.size for one in measured], kind="stable").tolist()
        order = [row for row in order if np.isfinite(found.sizes[row])]
        order.sort(key=lambda row: (measured[row].aim.source, measured[row].aim.target) not in flagged)
        triggers, facts = [], {}
        for row in order[: max(SHOWN, len(flagged))]:
            one = measured[row]
            attack = as_attack(self.form, found.state, row, one.aim, bench)
            triggers.append(
                as_found(
                    attack,
                    one.aim,
                    bench,
                    form=self.form,
                    asr=float(found.asr[row]),
                    size=float(found.sizes[row]),
                )
            )
            if (one.aim.source, one.aim.target) in flagged:
                rates = success_by_class(bench, attack, turned(bench, attack))
                others = np.delete(rates, one.aim.target)
                facts[one.aim.name] = {
                    "classes_turned": float(np.nansum(others >= self.least_asr)),
                    "lowest_class_asr": float(np.nanmin(others)),
                    **patch_facts(attack),
                }
        return tuple(triggers), facts
