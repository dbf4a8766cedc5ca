r"""How surprising the smallest trigger of a model is, had the model no backdoor.

In a clean model the sizes of the labels' triggers scatter around each other; a backdoor's label has a far
smaller one. The judge works on log sizes, where the scatter is about the same whatever the form and the
model. For label i

.. math:: z_i = \frac{\mu - \log s_i}{\tilde\sigma}, \qquad
          \tilde\sigma^2 = \frac{d_0 \sigma_0^2 + d \, \sigma^2}{d_0 + d}

with :math:`\mu` the median of the other labels, :math:`\sigma` their spread *above* the median (backdoors lie
below it, and must not widen the measure that they are measured by), and :math:`\sigma_0`, :math:`d_0` what
the labels of clean reference models scatter by and how much that counts. With few labels the reference
speaks, with many the model itself. Under the null :math:`z_i` is close to Student's t with :math:`d_0 + d`
degrees of freedom; its tail times the number of labels looked at bounds the chance that a clean model shows
such a label anywhere.

References:
    The moderated variance is that of Smyth, Linear models and empirical Bayes methods, Statistical
    Applications in Genetics and Molecular Biology 3(1), 2004. The anomaly index is that of Wang et al.,
    Neural Cleanse, 2019, section IV-B.

Deviations:
    Neural Cleanse takes any label with an anomaly index above 2 for a backdoor's. With ten labels that close
    to each other clean models reach 3; it is reported, and decides nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64
from scipy.stats import t as student

__all__ = ["Prior", "anomaly_indices", "p_values", "ratios"]

MAD_TO_SD = 1.4826


@dataclass(frozen=True)
class Prior:
    """What the log sizes of clean reference models' labels scatter by.

    Attributes:
        spread: Their standard deviation, σ₀.
        weight: How many labels of a model's own they count as, d₀.
    """

    spread: float
    weight: float

    def __post_init__(self) -> None:
        if not (self.spread > 0 and self.weight > 0):
            raise ValueError(f"prior: expected positive numbers, got {self.spread} and {self.weight}")


def p_values(
    sizes: Float64[np.ndarray, " k"], reference: Bool[np.ndarray, " k"], looked_at: int, prior: Prior
) -> Float64[np.ndarray, " k"]:
    """Return for each label the chance that any label of a clean model has so small a trigger.

    Args:
        sizes: Positive.
        reference: Labels that were not chosen for their small triggers; only these say what is usual. A
            label's own size is left out when it is judged.
        looked_at: Number of labels that any were chosen from.
        prior: Of this form of trigger.

    Returns:
        At most 1; 1 where fewer than 2 other labels are left to compare with.
    """
    logs = np.log(sizes)
    found = np.ones(len(sizes))
    for row, size in enumerate(logs):
        others = logs[reference & (np.arange(len(sizes)) != row)]
        if len(others) >= 2:
            found[row] = min(1.0, looked_at * _tail(size, others, prior))
    return found


def ratios(sizes: Float64[np.ndarray, " k"], reference: Bool[np.ndarray, " k"]) -> Float64[np.ndarray, " k"]:
    """Return each size over the median of the reference labels' sizes, in the middle of the logs."""
    usual = float(np.median(np.log(sizes[reference])))
    quotients: Float64[np.ndarray, " k"] = np.exp(np.log(sizes) - usual)
    return quotients


def anomaly_indices(
    sizes: Float64[np.ndarray, " k"], reference: Bool[np.ndarray, " k"]
) -> Float64[np.ndarray, " k"]:
    """Return Neural Cleanse's index: distance below the median in scaled median deviations; 0 above it.

    Examples:
        >>> sizes = np.array([2.0, 9.0, 10.0, 11.0, 12.0])
        >>> anomaly_indices(sizes, np.ones(5, bool)).round(3).tolist()
        [5.396, 0.674, 0.0, 0.0, 0.0]
    """
    median = np.median(sizes[reference])
    deviation = MAD_TO_SD * np.median(np.abs(sizes[reference] - median))
    below: Float64[np.ndarray, " k"] = np.maximum(median - sizes, 0) / max(deviation, 1e-12)
    return below


def _tail(size: float, others: Float64[np.ndarray, " m"], prior: Prior) -> float:
    usual = float(np.median(others))
    above = others[others >= usual] - usual
    own = len(others) / 2  # half of the labels say what the upper half scatters by
    spread = (prior.weight * prior.spread**2 + own * float(np.mean(above**2))) / (prior.weight + own)
    return float(student.sf((usual - size) / np.sqrt(spread), prior.weight + own))
