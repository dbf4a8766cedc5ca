"""A training set beside images that can be trusted: the null that scanners of training sets lack.

How far apart a class falls in two tells little by itself: a class with two natural modes (signs by day and
by night) falls apart more than many poisoned ones. But clean images of that class fall into both modes. So a
part of a class is suspicious where training images are and the trusted images of the same class are not.

That holds for trusted images drawn like the training images. Thirty frames of one traffic sign are not: they
lie together, away from every other sign. It shows in their nearest neighbours, which are one another, and
they count for fewer (:func:`representative`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Bool, Float32
from scipy.spatial.distance import cdist
from scipy.stats import binom

from calibration.errors import DataError
from calibration.scan.base import Bench, Executor, Finding, Verdict
from calibration.scan.penultimate import Penultimate, penultimate

__all__ = [
    "CLEARED",
    "COMPARED",
    "TOLERANCE",
    "Beside",
    "beside",
    "chance_of_so_few",
    "counted",
    "excess",
    "representative",
    "smallest_seen",
    "verdict_of",
]

TOLERANCE: Final = 2.0
"""How many times denser training images may lie somewhere than clean images do: a network has learned its
training images by heart, so they lie a little more together than images it has never seen."""

COMPARED: Final = 0.5
"""Trusted images judge a label if half of it would be flagged, as much as a rate of .1 of ten classes is."""

REPRESENTATIVE: Final = 2 / 3
"""Trusted images of a label that count for less than this share of their number judge nothing."""

CLEARED: Final = 0.25
"""A label has enough to be cleared if this share of it would be flagged."""


@dataclass(frozen=True, eq=False)
class Beside:
    """Features of a training set and of trusted images.

    Attributes:
        training: The set that may be poisoned.
        trusted: Clean images the network was not trained on; none where the bench's were made from the model.
    """

    training: Penultimate
    trusted: Penultimate

    @property
    def labels(self) -> tuple[int, ...]:
        """The training set's labels, rising."""
        return tuple(int(label) for label in np.unique(self.training.labels))

    def rows(self, label: int) -> np.ndarray:
        """Return the rows of the training set with this label."""
        return np.flatnonzero(self.training.labels == label).astype(np.int64)

    def trusted_of(self, label: int) -> Float32[np.ndarray, "m d"]:
        """Return the features of the trusted images of this class."""
        found: Float32[np.ndarray, "m d"] = self.trusted.features[self.trusted.labels == label]
        return found


def beside(bench: Bench, executor: Executor, scanner: str) -> Beside | str:
    """Return the features of a bench's training set and of its clean images, or why there are none.

    Raises:
        DataError: If the bench has no training set.
    """
    if bench.training is None:
        raise DataError(
            f"{scanner} looks at the training set, and none was given; name it with --training-set, "
            f"or leave {scanner} out"
        )
    training = penultimate(bench, executor, "training")
    clean, held = penultimate(bench, executor, "clean"), penultimate(bench, executor, "held")
    if training is None or clean is None or held is None:
        return "the model has no last linear layer, nor a convolution of one pixel, that gives the logits"
    if not len(training.labels):
        return "the training set has no images"
    trusted = training.take(np.zeros(len(training.labels), bool))
    for part in (clean, held):
        if len(part.labels) and not bench.generated:
            trusted = trusted.joined(part)
    if not np.isfinite(training.features).all() or not np.isfinite(trusted.features).all():
        return "the features before the last layer are not all finite numbers"
    return Beside(training, trusted)


def chance_of_so_few(
    inside: Bool[np.ndarray, " m"], share: float, looks: int, *, count: int | None = None
) -> float:
    r"""Return the chance that so few trusted images, or fewer, lie where a share of the training images lies.

    .. math:: p = \min(1, \ell\, P[\mathrm{Bin}(m, \mathrm{share} / 2) \le \mathrm{inside}])

    It is the chance if a clean image falls there at least half as often as a training image does
    (:data:`TOLERANCE`), for :math:`\ell` looks (Bonferroni).

    Args:
        inside: Which of the trusted images lie there.
        share: Share of the label's training images that lies there.
        looks: Places looked at, in all labels together.
        count: How many the trusted images count for, m; all of them if None.

    Examples:
        >>> round(chance_of_so_few(np.zeros(10, bool), 1.0, 1), 6)  # two to the power of minus ten
        0.000977
    """
    trusted = len(inside) if count is None else count
    there = int(np.ceil(inside.sum() * trusted / max(len(inside), 1)))
    return min(1.0, looks * float(binom.cdf(there, trusted, share / TOLERANCE)))


def representative(trusted: Float32[np.ndarray, "m d"], training: Float32[np.ndarray, "n d"]) -> float:
    r"""Return for how large a share of their number trusted images count, in [0, 1].

    .. math:: \min\left(1, \frac{1 - a}{1 - e}\right), \qquad e = \frac{m - 1}{m - 1 + n}

    a is the share of trusted images whose nearest neighbour is a trusted one, and e what it is if the two
    sets are drawn alike. 0 of fewer than two, or beside nothing.

    Args:
        trusted: Features of a label's trusted images.
        training: Features of its training images.

    References:
        Schilling, Multivariate two-sample tests based on nearest neighbors, 1986.
    """
    if len(trusted) < 2 or not len(training):
        return 0.0
    among = cdist(trusted, trusted)
    np.fill_diagonal(among, np.inf)
    own = float((among.min(1) < cdist(trusted, training).min(1)).mean())
    usual = (len(trusted) - 1) / (len(trusted) - 1 + len(training))
    return min(1.0, (1 - own) / (1 - usual))


def counted(
    trusted: Float32[np.ndarray, "m d"],
    training: Float32[np.ndarray, "n d"],
    suspicious: Bool[np.ndarray, " n"],
) -> int:
    """Return how many of a label's trusted images count; none where they represent too little.

    They represent its training images, or those that are not suspicious: of a label that is nearly all
    poisoned, clean images cannot represent more than the rest.
    """
    like = max(representative(trusted, training), representative(trusted, training[~suspicious]))
    return int(len(trusted) * like) if like >= REPRESENTATIVE else 0


def smallest_seen(trusted: int, alpha: float, looks: int) -> float:
    r"""Return the least share of a label's rows that is flagged where no trusted image lies, at most 1.

    .. math:: 2\,(1 - (\alpha / \ell)^{1/m})

    Examples:
        >>> round(smallest_seen(100, 0.05, 20), 3)
        0.116
        >>> smallest_seen(3, 0.05, 20)
        1.0
    """
    return min(1.0, TOLERANCE * (1 - (alpha / looks) ** (1 / trusted))) if trusted else 1.0


def excess(inside: Bool[np.ndarray, " n"], trusted_inside: Bool[np.ndarray, " m"]) -> float:
    r"""Return the share of a label's rows that clean images do not explain, at least 0.

    Clean images lie there with share u. If the others all do, :math:`t = \epsilon + (1 - \epsilon) u`.
    """
    share = float(inside.mean())
    usual = (float(trusted_inside.sum()) + 0.5) / (len(trusted_inside) + 1)  # never 1, and 1/2 of none
    return max(0.0, (share - usual) / (1 - usual))


def verdict_of(
    sets: Beside, findings: Sequence[Finding], seen: Sequence[float]
) -> tuple[Verdict, tuple[str, ...]]:
    """Return the verdict on a training set, and reasons for all but a backdoor.

    Args:
        sets: Training and trusted images.
        findings: Of the labels looked at.
        seen: For each label of the training set, the least share of its rows that would have been flagged;
            1 where it was not looked at.
    """
    if any(finding.flagged for finding in findings):
        return "backdoored", ()
    if not len(sets.trusted.labels):
        return "inconclusive", (
            "there are no trusted images to compare the training set with, as those at hand are made from "
            "the model; give clean images",
        )
    unclear = sum(share > CLEARED for share in seen)
    if unclear:
        return "inconclusive", (
            f"{unclear} of {len(seen)} labels have too few images for a part of {CLEARED:.0%} to show, or "
            "clean images unlike the training images; give more that are drawn alike and were not trained on",
        )
    return "clean", (
        f"in every label training images lie where clean images of that class lie; a part of {max(seen):.0%} "
        "of a label or more would have been flagged if it lay apart and no clean image fell into it",
    )
