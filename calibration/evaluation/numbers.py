"""The numbers that a repair is judged by, each share with the interval that the images allow."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int64
from scipy import stats

from calibration.attacks.base import Attack, Labels
from calibration.outputs import Kind

__all__ = ["Agreement", "Share", "UnderTrigger", "accuracy_by_class", "agreement", "share", "under_trigger"]

Predictions = Int64[np.ndarray, " n"]

_SMALLEST = np.finfo(np.float64).tiny


@dataclass(frozen=True)
class Share:
    """How many of some images, and what that says of all images like them.

    Attributes:
        hits: Images that count.
        of: Images looked at.
        low: Lower end of the interval.
        high: Upper end.
    """

    hits: int
    of: int
    low: float
    high: float

    @property
    def value(self) -> float:
        """The share; NaN of none."""
        return self.hits / self.of if self.of else float("nan")


def share(holds: Bool[np.ndarray, " n"], confidence: float = 0.95) -> Share:
    r"""Return the share of true rows and its exact interval.

    .. math:: \bigl[B_{\alpha/2}(k, n - k + 1),\; B_{1 - \alpha/2}(k + 1, n - k)\bigr],
              \qquad \alpha = 1 - \text{confidence}

    with B the quantiles of the beta distribution. It holds the true share at least that often.

    Args:
        holds: One for each image.
        confidence: Of the interval.

    Examples:
        >>> some = share(np.arange(20) < 10)
        >>> some.value, round(some.low, 4), round(some.high, 4)
        (0.5, 0.272, 0.728)

    References:
        Clopper and Pearson, The use of confidence or fiducial limits illustrated in the case of the
        binomial, Biometrika 1934.
    """
    hits, of, tail = int(holds.sum()), len(holds), (1 - confidence) / 2
    low = float(stats.beta.ppf(tail, hits, of - hits + 1)) if hits else 0.0
    high = float(stats.beta.ppf(1 - tail, hits + 1, of - hits)) if hits < of else 1.0
    return Share(hits, of, low, high)


def accuracy_by_class(
    predictions: Predictions, labels: Labels, classes: int, confidence: float = 0.95
) -> tuple[Share, ...]:
    """Return for each class the share of its images that are predicted as it."""
    right = predictions == labels
    return tuple(share(right[labels == label], confidence) for label in range(classes))


@dataclass(frozen=True)
class Agreement:
    """How much one model answers as another.

    Attributes:
        same: Images that both predict alike.
        kl_bits: Mean divergence of the other's probabilities from the one's, KL(one ‖ other), in bits.
    """

    same: Share
    kl_bits: float


def agreement(
    one: Float[np.ndarray, "n k"],
    other: Float[np.ndarray, "n k"],
    kinds: tuple[Kind, Kind] = ("logits", "logits"),
    confidence: float = 0.95,
) -> Agreement:
    r"""Compare two models' answers to the same images.

    .. math:: \frac{1}{n} \sum_{i=1}^{n} \sum_{j=1}^{k} p_{ij} \log_2 \frac{p_{ij}}{q_{ij}}

    with p the one's probabilities and q the other's.

    Args:
        one: Answers of the one.
        other: Answers of the other.
        kinds: What the answers are.
        confidence: Of the interval.
    """
    p, q = (_log_probabilities(answers, kind) for answers, kind in zip((one, other), kinds, strict=True))
    divergence = (np.exp(p) * (p - q)).sum(axis=1) / np.log(2)
    return Agreement(share(one.argmax(axis=1) == other.argmax(axis=1), confidence), float(divergence.mean()))


@dataclass(frozen=True)
class UnderTrigger:
    """What a model does with images that carry a trigger.

    Attributes:
        asr: Images given the class that the trigger is to lead to, of those that it applies to.
        robust: Images given their true class all the same, of the same.
    """

    asr: Share
    robust: Share


def under_trigger(
    predictions: Predictions, labels: Labels, attack: Attack, confidence: float = 0.95
) -> UnderTrigger:
    """Count where stamped images went; :mod:`calibration.attacks.measure` says what is counted and why.

    Args:
        predictions: Predicted classes of the stamped images, of those only that the attack applies to.
        labels: Their true classes.
        attack: What they were stamped with.
        confidence: Of the intervals.
    """
    return UnderTrigger(
        share(predictions == attack.target_of(labels), confidence), share(predictions == labels, confidence)
    )


def _log_probabilities(answers: Float[np.ndarray, "n k"], kind: Kind) -> Float[np.ndarray, "n k"]:
    plain = answers.astype(np.float64)
    if kind == "probabilities":
        plain = np.log(np.maximum(plain, _SMALLEST))
    highest = plain.max(axis=1, keepdims=True)
    logarithms: Float[np.ndarray, "n k"] = (
        plain - highest - np.log(np.exp(plain - highest).sum(axis=1, keepdims=True))
    )
    return logarithms
