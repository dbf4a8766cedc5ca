"""Compare a score with calibration: p-values, and the policy that turns a decision into a verdict."""

from __future__ import annotations

from enum import StrEnum

import numpy as np
from jaxtyping import Float64

from guard.detection.strip import Decision

__all__ = ["Policy", "Verdict", "p_value", "verdict_of"]


class Verdict(StrEnum):
    """What happened to one input; the values of the metrics' ``verdict`` label."""

    ACCEPT = "accept"
    FLAG = "flag"
    REJECT = "reject"
    UNCHECKED = "unchecked"


class Policy(StrEnum):
    """What is done with a suspicious input.

    ``enforce`` refuses it, ``flag`` answers and says so, ``monitor`` answers at once, checks
    after, and only records.
    """

    ENFORCE = "enforce"
    FLAG = "flag"
    MONITOR = "monitor"


def verdict_of(decision: Decision, policy: Policy) -> Verdict:
    """Return the verdict that the policy makes of a decision.

    Examples:
        >>> verdict_of(Decision.SUSPICIOUS, Policy.ENFORCE).value
        'reject'
        >>> verdict_of(Decision.SUSPICIOUS, Policy.MONITOR).value
        'flag'
    """
    if decision is Decision.FAILED:
        return Verdict.UNCHECKED
    if decision is Decision.CLEAN:
        return Verdict.ACCEPT
    return Verdict.REJECT if policy is Policy.ENFORCE else Verdict.FLAG


def p_value(mean_entropy_bits: float, clean_entropies: Float64[np.ndarray, " n"]) -> float:
    r"""Return the conformal p-value of an input's mean entropy; small is suspicious.

    .. math:: p(x) = \frac{1 + \#\{i : \bar H_i \le \bar H(x)\}}{n + 1}

    Args:
        mean_entropy_bits: Mean entropy of the input over all N blends, or the lower bound that
            a curtailed check gives, for which the p-value is a lower bound too.
        clean_entropies: Mean entropies of the n calibration images, ascending.

    References:
        Vovk, Gammerman, Shafer, Algorithmic Learning in a Random World, 2005, section 2.2.
    """
    below = int(np.searchsorted(clean_entropies, mean_entropy_bits, side="right"))
    return (1 + below) / (len(clean_entropies) + 1)
