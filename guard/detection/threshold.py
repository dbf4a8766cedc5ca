"""The policy that turns a decision into a verdict."""

from __future__ import annotations

from enum import StrEnum

from guard.detection.base import Decision

__all__ = ["Policy", "Tier", "Verdict", "tier_of", "verdict_of"]


class Verdict(StrEnum):
    """What happened to one input; the values of the metrics' ``verdict`` label."""

    ACCEPT = "accept"
    FLAG = "flag"
    REJECT = "reject"
    UNCHECKED = "unchecked"


class Policy(StrEnum):
    """What is done with a suspicious input.

    ``enforce`` refuses it, ``flag`` answers and says so, ``monitor`` answers at once, checks
    after, and only records. Of a model with two boundaries ``enforce`` refuses what is beyond both, and
    flags what is doubtful.
    """

    ENFORCE = "enforce"
    FLAG = "flag"
    MONITOR = "monitor"


class Tier(StrEnum):
    """The highest boundary that an input is beyond, whatever the policy makes of it.

    ``flag`` is the lower of two; ``block`` the higher, or the only one.
    """

    FLAG = "flag"
    BLOCK = "block"


def tier_of(decision: Decision | None) -> Tier | None:
    """Return what an input is beyond; None for nothing, or where that is not known.

    Examples:
        >>> tier_of(Decision.DOUBTFUL).value
        'flag'
    """
    if decision is Decision.DOUBTFUL:
        return Tier.FLAG
    return Tier.BLOCK if decision is Decision.SUSPICIOUS else None


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
    if decision is Decision.DOUBTFUL:
        return Verdict.FLAG
    return Verdict.REJECT if policy is Policy.ENFORCE else Verdict.FLAG
