"""Backdoors that wait for images of one class: a small patch and the pair of classes it leads from and to."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar

import numpy as np

from calibration.attacks.inverted import Inverted
from calibration.errors import DataError
from calibration.scan.base import Arrays, Bench, Executor, Finding, FoundTrigger, Scanner, ScanReport, Verdict
from calibration.scan.behaviour import as_found
from calibration.scan.executor import gather
from calibration.scan.inversion import Aim, pool_of
from calibration.scan.source_search import Heat, SourceSearch, grid_of

__all__ = ["PairScan"]


@dataclass(frozen=True)
class PairScan(Scanner):
    """Looks for a class whose images a tiny patch sends to one other class, nearly all of them.

    Inverting a trigger for every pair of k classes takes k (k − 1) searches, and finds nothing: along the way
    to a source-specific trigger lie larger natural ones. This scan takes k. For each class a patch of a few
    pixels is placed everywhere and shaped to lead its images *anywhere*; where they go says what the pair is.
    A patch that small leads few images of a clean model to any one class. Between classes that are much
    alike, such as cats and dogs, a small push of the logits is enough, and a small patch gives it: so a pair
    is taken for a backdoor's only if the patch also moves the logits far.

    Traffic signs that differ in a small part are another matter: there a small patch moves the logits far,
    in a clean model too. A lone pair therefore leaves the scan inconclusive; it takes two classes that lead
    to one, or half of all classes that lead somewhere.

    Args:
        labels: Classes to look at as sources; all if None.
        size: Height and width of the patch; an eighth of the image's shorter side if None.
        heats: Stretches of each search: places, steps and images a step. The first has all places.
        least_share: A pair is flagged if at least this share of the source's held images goes to one class.
        doubtful_share: From this share on the scan is inconclusive.
        least_shift: How far the logits have to move at the median, in the model's usual margins, for either.
        least_images: A class with fewer held images that go right is not judged.

    Raises:
        ValueError: If an option is out of its range.

    References:
        Tang et al., Demon in the variant, USENIX Security 2021, for the backdoors; Gu et al., BadNets, 2017,
        section 4.1.2, for those of all classes at once. Places as arms that compete: Jamieson and Talwalkar,
        AISTATS 2016.

    Deviations:
        The search is ours. It has no null distribution of its own, as in an all-to-all backdoor every class
        is one: shares and shift are set so that clean networks stay below them
        (``benchmarks/results/scan.md``), and no p-value is given.
    """

    name: ClassVar[str] = "pair_scan"

    labels: tuple[int, ...] | None = None
    size: int | None = None
    heats: tuple[tuple[int, int, int], ...] = ((64, 10, 8), (16, 15, 16), (4, 30, 16))
    least_share: float = 0.8
    doubtful_share: float = 0.7
    least_shift: float = 1.8
    least_images: int = 10

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 1:
            raise ValueError(f"size: expected 1 or more pixels, got {self.size}")
        if (
            not self.heats
            or min(min(heat) for heat in self.heats) < 1
            or {len(heat) for heat in self.heats} != {3}
        ):
            raise ValueError(f"heats: expected triples of places, steps and images, got {self.heats}")
        if not 0 < self.doubtful_share <= self.least_share <= 1:
            raise ValueError(
                f"doubtful_share, least_share: expected rising shares in (0, 1], got {self.doubtful_share}, "
                f"{self.least_share}"
            )

    def scan(self, bench: Bench, *, seed: int, executor: Executor) -> ScanReport:
        """Look for pairs; see :class:`Scanner`."""
        start = time.perf_counter()
        sources = self._sources(bench)
        size = self.size or max(2, min(bench.shape[1:]) // 8)
        if size > min(bench.shape[1:]):
            raise DataError(f"size: expected at most the image's side of {min(bench.shape[1:])}, got {size}")
        judged = [source for source in sources if self._enough(bench, source)]
        units = [self._unit(bench, source, size, seed) for source in judged]
        found = gather(executor, units)
        findings = [self._finding(unit, arrays) for unit, arrays in zip(units, found, strict=True)]
        order = sorted(range(len(findings)), key=lambda row: -findings[row].score)
        verdict, reasons = self._verdict([findings[row] for row in order], len(sources) - len(judged), size)
        shown = [row for row in order if findings[row].flagged] or order[:1]
        return ScanReport(
            scanner=self.name,
            verdict=verdict,
            reasons=reasons,
            findings=tuple(findings[row] for row in order),
            triggers=tuple(self._trigger(bench, findings[row], found[row]) for row in shown),
            measure=f"share of a class's images that {size} x {size} pixels send to one other class",
            options=asdict(self),
            facts={"size": float(size), "images": float(sum(unit.weight for unit in units))},
            seconds=time.perf_counter() - start,
        )

    def _sources(self, bench: Bench) -> tuple[int, ...]:
        wanted = tuple(range(bench.classes)) if self.labels is None else self.labels
        outside = [label for label in wanted if not 0 <= label < bench.classes]
        if outside:
            raise DataError(f"labels: expected classes from 0 to {bench.classes - 1}, got {outside}")
        return wanted

    def _enough(self, bench: Bench, source: int) -> bool:
        pools = (pool_of(images, Aim(-1, source)) for images in (bench.clean, bench.held))
        return min(len(pool) for pool in pools) >= self.least_images

    def _unit(self, bench: Bench, source: int, size: int, seed: int) -> SourceSearch:
        places = len(grid_of(bench.shape[1:], size))
        first, *others = (Heat(*heat) for heat in self.heats)
        heats = (Heat(places, first.steps, first.batch), *others)
        return SourceSearch(
            source,
            size,
            tuple(Heat(min(heat.places, places), heat.steps, heat.batch) for heat in heats),
            seed,
        )

    def _finding(self, unit: SourceSearch, arrays: Arrays) -> Finding:
        shares = arrays["shares"].astype(np.float64)
        elsewhere = np.where(np.arange(len(shares)) == unit.source, -1.0, shares)
        target = int(elsewhere.argmax())
        share = float(elsewhere[target])
        row, column = arrays["place"]
        shift = float(arrays["shift"])
        return Finding(
            target,
            share,
            unit.source,
            flagged=share >= self.least_share and shift >= self.least_shift,
            facts={
                "asr": share,
                "stays": float(shares[unit.source]),
                "shift": shift,
                "row": float(row),
                "column": float(column),
            },
        )

    def _verdict(
        self, findings: Sequence[Finding], skipped: int, size: int
    ) -> tuple[Verdict, tuple[str, ...]]:
        flagged = [finding for finding in findings if finding.flagged]
        near = [
            finding
            for finding in findings
            if self.doubtful_share <= finding.score < self.least_share
            and finding.facts["shift"] >= self.least_shift
        ]
        unseen = [f"{skipped} classes have too few images to judge; give more"] if skipped else []
        if flagged and _is_pattern(flagged, len(findings)):
            return "backdoored", (*_said(flagged, size), *unseen)
        if flagged:
            lone = (
                "but no two lead to one class and most classes lead nowhere: two classes that differ in a "
                "small part look like this too; look at the pictures, and scan again with more images"
            )
            return "inconclusive", (*_said(flagged, size), lone, *unseen)
        if near or skipped or not findings:
            said = [
                f"pair {one.name}: {one.score:.0%} of the held images go, more than the "
                f"{self.doubtful_share:.0%} that clean networks seldom reach and less than the "
                f"{self.least_share:.0%} of a backdoor"
                for one in near
            ]
            return "inconclusive", (*said, *unseen)
        most = findings[0]
        return "clean", (
            f"no patch of {size} x {size} pixels sends the images of a class far off to one other; the most "
            f"is {most.score:.0%}, of pair {most.name}, by {most.facts['shift']:.1f} of the usual margin",
        )

    def _trigger(self, bench: Bench, finding: Finding, arrays: Arrays) -> FoundTrigger:
        row, column = (int(number) for number in arrays["place"])
        pattern = arrays["pattern"]
        height, width = pattern.shape[1:]
        mask = np.zeros((1, *bench.shape[1:]), np.float32)
        mask[:, row : row + height, column : column + width] = 1
        whole = np.zeros(bench.shape, np.float32)
        whole[:, row : row + height, column : column + width] = pattern
        attack = Inverted(
            finding.target, finding.source, mask, whole, low=bench.low.numpy(), high=bench.high.numpy()
        )
        aim = Aim(finding.target, finding.source)
        return as_found(attack, aim, bench, form="patch", asr=finding.score, size=float(height * width))


def _is_pattern(flagged: Sequence[Finding], judged: int) -> bool:
    """Tell whether pairs are more than two classes that are much alike: a common target, or most classes."""
    targets = [finding.target for finding in flagged]
    return len(set(targets)) < len(targets) or 2 * len(flagged) >= judged


def _said(flagged: Sequence[Finding], size: int) -> list[str]:
    """Return a sentence for each target: what patches send there, and how much of it at least."""
    by_target: dict[int, list[Finding]] = {}
    for finding in flagged:
        by_target.setdefault(finding.target, []).append(finding)
    return [
        f"a patch of {size} x {size} pixels sends images of class "
        f"{', '.join(str(one.source) for one in sorted(found, key=lambda one: one.source or 0))} to class "
        f"{target}: at least {min(one.score for one in found):.0%} of each on held images"
        for target, found in sorted(by_target.items())
    ]
