"""Spectral signatures: do training images of a class lie far out along a line where no clean ones do?"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

from calibration.scan.base import Bench, Executor, Finding, Scanner, ScanReport, Verdict
from calibration.scan.penultimate import principal_directions
from calibration.scan.trusted import (
    COMPARED,
    Beside,
    beside,
    chance_of_so_few,
    counted,
    smallest_seen,
    verdict_of,
)

__all__ = ["SpectralSignatures", "farthest_apart", "outlier_scores"]


@dataclass(frozen=True)
class SpectralSignatures(Scanner):
    r"""Scores each label's features along their strongest direction, and compares with clean images' scores.

    .. math:: \tau_i = \langle R(x_i) - \mu, v \rangle^2

    R are the features before the last linear layer, v the top right singular vector of the label's centred
    features, and :math:`\mu` the mean of the *trusted* images of the class. A label is flagged if, for one of
    the ``shares`` t of its training images that score highest, so few of its trusted images, which count for
    m, score as high that

    .. math:: \ell\, P[\mathrm{Bin}(m, t / 2) \le \text{trusted above}] \le \alpha

    with :math:`\ell` the number of shares and labels. Its suspects are the rows that score above where the
    two distributions are farthest apart; that distance is the label's score.

    No p-value is given: the trusted images are compared with along a direction that is centred on them, so
    that the left side above, told as ``chance``, is only about one. A label with too few trusted images is
    neither flagged nor cleared.

    Args:
        shares: Shares of each label's rows, highest scores first, in which trusted images are looked for.
        alpha: What ``chance`` may be at most to be flagged.
        least: Training images that a label needs.

    References:
        Tran et al., Spectral Signatures in Backdoor Attacks, NeurIPS 2018, arXiv 1811.00636, algorithm 1.

    Deviations:
        The paper removes the 1.5 ε n rows with the highest scores, ε given, and decides nothing: from a clean
        set it removes as many. Here trusted images say whether, and where to cut.
        Centred on the trusted images' mean, not the training images': where half of a label is poisoned,
        which a rate of 10 % of ten classes comes to, both halves are as far from their common mean, and the
        poisoned ones score no higher (AUROC .45 on BadNets; 1.00 with the trusted mean).
    """

    name: ClassVar[str] = "spectral_signatures"

    shares: tuple[float, ...] = (0.1, 0.2, 0.4)
    alpha: float = 0.05
    least: int = 20

    def __post_init__(self) -> None:
        if not self.shares or not all(0 < share < 1 for share in self.shares):
            raise ValueError(f"shares: expected shares in (0, 1), got {self.shares}")
        if not 0 < self.alpha < 1:
            raise ValueError(f"alpha: expected a chance in (0, 1), got {self.alpha}")
        if self.least < 1:
            raise ValueError(f"least: expected at least one image, got {self.least}")

    def scan(self, bench: Bench, *, seed: int, executor: Executor) -> ScanReport:
        """Score every label of the training set; nothing is random."""
        del seed
        begun = time.monotonic()
        sets = beside(bench, executor, self.name)
        if isinstance(sets, str):
            return self._report("inconclusive", (sets,), [], begun)
        looks = len(self.shares) * len(sets.labels)
        seen: list[float] = []
        scored: list[_Scored] = []
        for label in sets.labels:
            enough = smallest_seen(len(sets.trusted_of(label)), self.alpha, looks) <= COMPARED
            one = self._score(sets, label, looks) if enough and len(sets.rows(label)) >= self.least else None
            seen.append(1.0 if one is None else one.seen)
            scored.extend([] if one is None else [one])
        scored.sort(key=lambda one: (not one.finding.flagged, -one.finding.score))
        verdict, reasons = verdict_of(sets, [one.finding for one in scored], seen)
        told = tuple(one.reason for one in scored if one.finding.flagged)
        return self._report(verdict, told + reasons, scored, begun)

    def _report(
        self, verdict: Verdict, reasons: tuple[str, ...], scored: list[_Scored], begun: float
    ) -> ScanReport:
        suspects = [one.rows for one in scored if one.finding.flagged]
        return ScanReport(
            scanner=self.name,
            verdict=verdict,
            reasons=reasons,
            findings=tuple(one.finding for one in scored),
            suspects=np.sort(np.concatenate([np.empty(0, np.int64), *suspects])),
            measure="how much oftener training images lie far out than clean images do, as a share",
            options=asdict(self),
            facts={"labels": float(len(scored))},
            seconds=time.monotonic() - begun,
        )

    def _score(self, sets: Beside, label: int, looks: int) -> _Scored:
        rows, trusted = sets.rows(label), sets.trusted_of(label)
        centre = trusted.mean(0, dtype=np.float64)
        features = sets.training.features[rows] - centre
        scores, direction, strengths = outlier_scores(features)
        others: Float64[np.ndarray, " m"] = ((trusted - centre) @ direction) ** 2
        distance, cut = farthest_apart(scores, others)
        above: Bool[np.ndarray, " n"] = scores > cut
        count = counted(trusted, sets.training.features[rows], above)
        chances = {share: self._chance(scores, others, share, looks, count) for share in self.shares}
        share = min(chances, key=lambda one: chances[one])
        flagged = chances[share] <= self.alpha
        facts = {
            "chance": chances[share],
            "share": share,
            "images": float(len(rows)),
            "trusted": float(len(trusted)),
            "trusted_counted": float(count),
            "trusted_above": float((others > _cut_of(scores, share)).sum()),
            "variance": float(strengths[0] ** 2 / max(float((features**2).sum()), 1e-300)),
            "suspects": float(above.sum()) if flagged else 0.0,
        }
        finding = Finding(label, distance, flagged=flagged, facts=facts)
        return _Scored(finding, rows[above], smallest_seen(count, self.alpha, looks))

    @staticmethod
    def _chance(
        scores: Float64[np.ndarray, " n"],
        others: Float64[np.ndarray, " m"],
        share: float,
        looks: int,
        count: int,
    ) -> float:
        """Return how likely it is that so few trusted images score as high as the top share; see above."""
        cut = _cut_of(scores, share)
        return chance_of_so_few(others > cut, float((scores > cut).mean()), looks, count=count)


@dataclass(frozen=True, eq=False)
class _Scored:
    """What is found in a label.

    Attributes:
        finding: About it.
        rows: Those that would be suspects.
        seen: The least share of the label that would have been flagged.
    """

    finding: Finding
    rows: Int64[np.ndarray, " _"]
    seen: float

    @property
    def reason(self) -> str:
        """Why it is flagged."""
        facts = self.finding.facts
        return (
            f"label {self.finding.target}: {facts['trusted_above']:.0f} of {facts['trusted']:.0f} clean "
            f"images of that class lie as far out along the strongest direction as the farthest "
            f"{facts['share']:.0%} of its {facts['images']:.0f} training images "
            f"(chance {facts['chance']:.1g})"
        )


def outlier_scores(
    centred: Float[np.ndarray, "n d"],
) -> tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, " d"], Float64[np.ndarray, " one"]]:
    """Return squared projections on the top right singular vector, that vector, and its singular value.

    Examples:
        >>> outlier_scores(np.array([[3.0, 4.0], [0.0, 0.0]]))[0].round(6).tolist()
        [25.0, 0.0]
    """
    directions, strengths = principal_directions(centred, 1)
    scores: Float64[np.ndarray, " n"] = (centred @ directions[0]) ** 2
    return scores, directions[0], strengths


def farthest_apart(
    scores: Float64[np.ndarray, " n"], others: Float64[np.ndarray, " m"]
) -> tuple[float, float]:
    r"""Return how far scores lie above others, and from where on.

    .. math:: \max_c \; P[\mathrm{scores} > c] - P[\mathrm{others} > c]

    It is the one-sided Kolmogorov-Smirnov distance of the two samples, and 0 where no cut shows more.

    Examples:
        >>> farthest_apart(np.array([1.0, 2.0, 8.0, 9.0]), np.array([1.0, 2.0, 3.0, 9.0]))
        (0.25, 3.0)
    """
    cuts = np.sort(np.concatenate([scores, others]))
    above = 1 - np.searchsorted(np.sort(scores), cuts, side="right") / len(scores)
    others_above = 1 - np.searchsorted(np.sort(others), cuts, side="right") / len(others)
    best = int((above - others_above).argmax())
    return float(above[best] - others_above[best]), float(cuts[best])


def _cut_of(scores: Float64[np.ndarray, " n"], share: float) -> float:
    return float(np.quantile(scores, 1 - share))
