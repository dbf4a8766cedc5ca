"""Activation clustering: does a class fall into two clusters, one of which no clean image joins?"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64
from scipy.spatial.distance import cdist

from calibration.scan.base import Bench, Executor, Finding, Scanner, ScanReport, Verdict
from calibration.scan.clusters import independent_axes, silhouette, two_clusters
from calibration.scan.penultimate import principal_directions
from calibration.scan.trusted import (
    COMPARED,
    Beside,
    beside,
    chance_of_so_few,
    counted,
    excess,
    smallest_seen,
    verdict_of,
)

__all__ = ["ActivationClustering"]

CLUSTERS = 2

_Members = Bool[np.ndarray, " _"]


@dataclass(frozen=True)
class ActivationClustering(Scanner):
    r"""Clusters each label's features in two, and asks whether clean images of that class fall into both.

    Features before the last linear layer are reduced to ``dimensions``, label by label, and parted by k-means
    with k = 2. The trusted images of the class, on which nothing was fitted, go to the nearer centre. A label
    is flagged if its silhouette is at least ``silhouette`` and so few of them go to one of its clusters that

    .. math:: p = 2 k\, P[\mathrm{Bin}(m, t / 2) \le \text{trusted inside}] \le \alpha

    where t is the cluster's share of the label's rows, m what the trusted images of the class count for
    (all, where they are as varied as the training images) and k the number of labels. So the chance is for
    clean images falling there half as often as training images or more, and all clusters of all labels are
    taken into account.

    A label with too few trusted images is judged as in the paper, by the smaller cluster: flagged if the
    silhouette is at least ``silhouette``, its relative size below ``relative_size`` and its reclassification
    below ``reclassification``. It is never cleared.

    Args:
        dimensions: What features are reduced to.
        reduction: ``pca``, or ``ica`` (as in the paper).
        restarts: Times k-means begins anew.
        alpha: The chance of flagging any label of a clean set, at most.
        silhouette: The least mean silhouette that is suspicious, where there are too few trusted images.
        relative_size: The share of a label that a suspicious cluster stays below, there too.
        reclassification: The paper's T: what l / p stays below, there too.
        least: Training images that a label needs to be clustered.
        sampled: Images that a silhouette is computed from, at most.

    References:
        Chen et al., Detecting Backdoor Attacks on Deep Neural Networks by Activation Clustering, 2018, arXiv
        1811.03728.

    Deviations:
        Trusted images are compared with; the paper has none. At a poison rate of 10 % of ten classes, half of
        the target's rows are poisoned, so that relative size sees nothing, and clean classes of GTSRB reach
        a silhouette of .46 with a cluster of 11 %, more than most poisoned ones.
        *Reclassification* is by the nearest class mean, the suspicious cluster left out, instead of by a
        network trained anew without it. Features of poisoned images lean to the target whatever is left out
        (on Blend all of them stay), so it decides nothing where trusted images do; l and p are told as
        ``kept`` and ``moved``, shares of the cluster.
        PCA by default, as in ART and BackdoorBench. Their default, the smaller cluster of every class, would
        flag every clean set and is not here.
    """

    name: ClassVar[str] = "activation_clustering"

    dimensions: int = 10
    reduction: Literal["pca", "ica"] = "pca"
    restarts: int = 10
    alpha: float = 0.05
    silhouette: float = 0.1
    relative_size: float = 0.35
    reclassification: float = 1.0
    least: int = 20
    sampled: int = 2000

    def __post_init__(self) -> None:
        for option in ("dimensions", "restarts", "least", "sampled"):
            if getattr(self, option) < (1 if option in {"dimensions", "restarts"} else CLUSTERS):
                raise ValueError(f"{option}: expected more, got {getattr(self, option)}")
        if not 0 < self.alpha < 1:
            raise ValueError(f"alpha: expected a chance in (0, 1), got {self.alpha}")
        if self.reduction not in {"pca", "ica"}:
            raise ValueError(f"reduction: expected pca or ica, got {self.reduction!r}")

    def scan(self, bench: Bench, *, seed: int, executor: Executor) -> ScanReport:
        """Cluster every label of the training set."""
        begun = time.monotonic()
        sets = beside(bench, executor, self.name)
        if isinstance(sets, str):
            return self._report("inconclusive", (sets,), (), (), begun)
        looks = CLUSTERS * len(sets.labels)
        found = [self._cluster(sets, label, seed, looks) for label in sets.labels]
        clustered = [one for one in found if one is not None]
        clustered.sort(key=lambda one: (not one.finding.flagged, -one.finding.score))
        findings = tuple(one.finding for one in clustered)
        verdict, reasons = verdict_of(sets, findings, [1.0 if one is None else one.seen for one in found])
        flagged = [one for one in clustered if one.finding.flagged]
        told = tuple(one.reason for one in flagged)
        return self._report(verdict, told + reasons, findings, tuple(one.rows for one in flagged), begun)

    def _report(
        self,
        verdict: Verdict,
        reasons: tuple[str, ...],
        findings: tuple[Finding, ...],
        rows: tuple[Int64[np.ndarray, " _"], ...],
        begun: float,
    ) -> ScanReport:
        chances = [finding.p_value for finding in findings if finding.p_value is not None]
        return ScanReport(
            scanner=self.name,
            verdict=verdict,
            reasons=reasons,
            findings=findings,
            p_value=min(chances, default=None),
            suspects=np.sort(np.concatenate([np.empty(0, np.int64), *rows])),
            measure="share of the label's training images that clean images do not explain",
            options=asdict(self),
            facts={"labels": float(len(findings))},
            seconds=time.monotonic() - begun,
        )

    def _cluster(self, sets: Beside, label: int, seed: int, looks: int) -> _Clustered | None:
        """Return what is found in a label; None if it has too few images, or they are all alike."""
        rows, trusted = sets.rows(label), sets.trusted_of(label)
        generator = np.random.default_rng([seed, label])
        if len(rows) < self.least:
            return None
        mean = sets.training.features[rows].mean(0, dtype=np.float64)
        centred = sets.training.features[rows] - mean
        axes = self._axes(centred, generator)
        points = centred @ axes.T
        parted = two_clusters(points, generator, restarts=self.restarts)
        if parted is None:
            return None
        second, centres = parted
        sample = generator.permutation(len(rows))[: self.sampled]
        apart = silhouette(points[sample], second[sample])
        others = cdist((trusted - mean) @ axes.T, centres).argmin(1) == 1
        return self._judge(sets, label, looks, apart, (second, others))

    def _judge(
        self, sets: Beside, label: int, looks: int, apart: float, second: tuple[_Members, _Members]
    ) -> _Clustered:
        """Return what a label's clusters say.

        Args:
            sets: Training and trusted images.
            label: Whose clusters they are.
            looks: Clusters of all labels.
            apart: Their silhouette.
            second: Which of the label's training images, and of its trusted ones, are in the second cluster.
        """
        rows, trusted = sets.rows(label), sets.trusted_of(label)
        raw = [
            chance_of_so_few(second[1] == side, float((second[0] == side).mean()), looks)
            for side in (False, True)
        ]
        rarer = raw[1] < raw[0]
        count = counted(trusted, sets.training.features[rows], second[0] == rarer)
        seen = smallest_seen(count, self.alpha, looks)
        compared = seen <= COMPARED
        side = rarer if compared else bool(second[0].mean() < 0.5)
        inside, others = second[0] == side, second[1] == side
        share, (kept, moved) = float(inside.mean()), _reclassified(sets, rows[inside], label)
        chance = chance_of_so_few(others, share, looks, count=count)
        like_the_paper = (
            apart >= self.silhouette and share < self.relative_size and kept < self.reclassification * moved
        )
        flagged = chance <= self.alpha if compared else like_the_paper
        facts = {
            "silhouette": apart,
            "relative_size": min(share, 1 - share),
            "share": share,
            "images": float(len(rows)),
            "trusted": float(len(trusted)),
            "trusted_counted": float(count),
            "trusted_inside": float(others.sum()),
            "kept": kept,
            "moved": moved,
            "suspects": float(inside.sum()) if flagged else 0.0,
        }
        p_value = chance if compared else None
        finding = Finding(label, excess(inside, others), p_value=p_value, flagged=flagged, facts=facts)
        return _Clustered(finding, rows[inside], seen)

    def _axes(
        self, centred: Float[np.ndarray, "n d"], generator: np.random.Generator
    ) -> Float64[np.ndarray, "k d"]:
        axes, lengths = principal_directions(centred, self.dimensions)
        if self.reduction == "pca":
            return axes
        there = lengths > 1e-6 * lengths[0] if lengths[0] else np.zeros(len(lengths), bool)
        whitening = axes[there] * (np.sqrt(len(centred)) / lengths[there])[:, None]
        turned: Float64[np.ndarray, "k d"] = independent_axes(centred @ whitening.T, generator) @ whitening
        return turned


@dataclass(frozen=True, eq=False)
class _Clustered:
    """What is found in a label.

    Attributes:
        finding: About it.
        rows: Those of the suspicious cluster.
        seen: The least share of the label that would have been flagged.
    """

    finding: Finding
    rows: Int64[np.ndarray, " _"]
    seen: float

    @property
    def reason(self) -> str:
        """Why it is flagged."""
        facts = self.finding.facts
        cluster = (
            f"label {self.finding.target}: {len(self.rows)} of {facts['images']:.0f} training images form a "
            f"cluster (silhouette {facts['silhouette']:.2f})"
        )
        if self.finding.p_value is None:
            return (
                f"{cluster} that looks like other classes: {facts['kept']:.0%} lie nearest the label's other "
                f"images, {facts['moved']:.0%} nearest another class"
            )
        return (
            f"{cluster} that {facts['trusted_inside']:.0f} of {facts['trusted']:.0f} clean images of that "
            f"class fall into (p = {self.finding.p_value:.1g})"
        )


def _reclassified(sets: Beside, rows: Int64[np.ndarray, " _"], label: int) -> tuple[float, float]:
    """Return the shares of some rows that lie nearest their label's other rows, and nearest one other class.

    The second is of the class that most of the others go to: l and p of the paper, over the number of rows.
    """
    left_out = np.zeros(len(sets.training.labels), bool)
    left_out[rows] = True
    rest = sets.training.take(~left_out)
    classes = np.unique(rest.labels)
    means = np.stack([rest.features[rest.labels == one].mean(0) for one in classes])
    nearest = classes[cdist(sets.training.features[rows], means).argmin(1)]
    others = nearest[nearest != label]
    most = np.bincount(others).max() if len(others) else 0
    return float((nearest == label).mean()), float(most / len(rows))
