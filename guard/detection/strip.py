r"""STRIP with exact curtailment.

The statistic of an input x is the mean entropy of the predictions on x superimposed with N
fixed clean images,

.. math:: \bar H(x) = \frac1N \sum_{i=1}^{N} H\bigl(f(x \oplus o_i)\bigr),

and x is suspicious when :math:`\bar H(x) < \tau`: a trigger keeps the prediction certain
whatever is laid over it (Gao et al., STRIP, ACSAC 2019, algorithm 1, eq. 2 to 4). The score
is :math:`-\bar H`, so that higher is more suspicious.

Entropies are never negative, so the partial sums only grow, and x may be accepted at the
first n with :math:`\frac1N\sum_{i\le n} H_i \ge \tau`: no later blend can bring it below. The
verdict is that of all N, exactly, in floating point too: sums are taken in one fixed order in
float64, adding a non-negative number never lowers a rounded sum, and division by N is
monotone. (An entropy that is not finite fails the check in the round it turns up in; after an
early acceptance it is never seen.) Only inputs that are rejected, or nearly so, cost all N passes.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Float64, Int64

from guard.arrays import EntropyBits, Logits
from guard.detection.base import Decision, Evidence
from guard.detection.p_values import p_value
from guard.detection.plan import CheckPlan

__all__ = ["Strip", "mean_entropies", "passes_needed"]


@dataclass(frozen=True)
class Strip:
    """The STRIP detector: a plan and the boundary its statistic is compared with.

    Attributes:
        plan: Rounds over the N ordered overlays.
        boundary_bits: τ; a mean entropy strictly below it is suspicious.
        block_bits: A lower boundary; what is between the two is only doubtful. None for no such tier.
    """

    plan: CheckPlan
    boundary_bits: float
    block_bits: float | None = None
    by_class: ClassVar[bool] = False
    layers: ClassVar[None] = None

    def measure(
        self,
        predicted: Int64[np.ndarray, " p"],
        overlays: Int64[np.ndarray, " p"],
        logits: Logits,
        entropies: EntropyBits,
    ) -> Float[np.ndarray, " p"]:
        """Return the entropies as they are."""
        return entropies

    def update(self, evidence: Evidence, measured: Float[np.ndarray, " r"]) -> Evidence:
        """Return the evidence after the next round's entropies, in the plan's overlay order."""
        total = evidence.entropy_sum
        for bits in measured.tolist():  # one after another: the order that sums are the same in everywhere
            total += max(bits, 0.0)
        return Evidence(total, evidence.passes + len(measured), evidence.distance)

    def decide(self, evidence: Evidence) -> Decision | None:
        """Return the decision, or None while the next round is still needed."""
        if not isfinite(evidence.entropy_sum):
            return Decision.FAILED
        if evidence.entropy_sum / self.plan.n_overlays >= self.boundary_bits:
            return Decision.CLEAN
        if evidence.passes < self.plan.n_overlays:
            return None
        mean = evidence.entropy_sum / self.plan.n_overlays
        return Decision.SUSPICIOUS if self.block_bits is None or mean < self.block_bits else Decision.DOUBTFUL

    def score(self, evidence: Evidence) -> float:
        """Return minus the mean entropy, in bits; higher is more suspicious.

        After curtailment the missing entropies count as 0, so this is an upper bound of the
        score over all N; it is the score itself once ``evidence.passes`` equals N.
        """
        return -evidence.entropy_sum / self.plan.n_overlays

    def p_value(self, evidence: Evidence, clean_values: Float64[np.ndarray, " n"]) -> float:
        """Return the p-value; a lower bound after curtailment, as the mean entropy is then.

        Args:
            evidence: Of the input.
            clean_values: Mean entropies of clean inputs, bits, ascending.
        """
        return p_value(-self.score(evidence), clean_values)


def mean_entropies(entropies: Float[np.ndarray, "n m"]) -> Float64[np.ndarray, " n"]:
    """Return each input's mean entropy over its m blends, summed exactly as :class:`Strip` sums.

    Args:
        entropies: Entropy of each blend, bits, columns in the plan's overlay order.
    """
    bits = np.maximum(entropies.astype(np.float64), 0.0)
    means: np.ndarray = np.cumsum(bits, axis=1)[:, -1] / entropies.shape[1]
    return means


def passes_needed(entropies: Float[np.ndarray, "n m"], strip: Strip) -> Float64[np.ndarray, " n"]:
    """Return how many blends the curtailed check spends on each input, whole rounds counted.

    Args:
        entropies: Entropy of each blend, bits, columns in the plan's overlay order.
        strip: Plan and boundary.
    """
    bits = np.maximum(entropies.astype(np.float64), 0.0)
    partial = np.cumsum(bits, axis=1)
    ends = np.cumsum(strip.plan.rounds)
    undecided = partial[:, ends - 1] / strip.plan.n_overlays < strip.boundary_bits
    decided = ~undecided  # a NaN is decided too: the check fails there and then
    first = np.where(decided.any(axis=1), decided.argmax(axis=1), len(ends) - 1)
    needed: np.ndarray = ends[first].astype(np.float64)
    return needed
