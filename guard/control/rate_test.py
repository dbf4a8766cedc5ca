r"""Is an event more frequent than a limit allows? May be asked after every single trial. Pure.

Theory of operation. What watches a candidate looks again and again and stops at the first bad sign. A
binomial test or a Clopper–Pearson bound would be wrong far more often than it says under such looking. So
the evidence here is a likelihood ratio, averaged over alternatives :math:`p_j` above the limit :math:`p_0`,

.. math:: E = \frac1J \sum_j \Bigl(\frac{p_j}{p_0}\Bigr)^{r} \Bigl(\frac{1-p_j}{1-p_0}\Bigr)^{m-r},

after r events in m trials. While the chance of an event, given all that came before, is at most :math:`p_0`,
E is a non-negative supermartingale that starts at 1, so that the chance that it *ever* reaches 1/α is at most
α (Ville, 1939; Robbins, 1970). That holds at every moment, and in whatever order the events come.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

__all__ = ["ALPHA", "RateTest"]

ALPHA: Final = 1e-3
"""Chance that a rate within its limit is ever taken for one above it."""

_STEPS: Final = np.array([0.003, 0.01, 0.03, 0.1, 0.25, 0.5, 0.9])
"""Where the alternatives are, as shares of the way from the limit to 1."""


@dataclass
class RateTest:
    """Counts events, and says when there are provably too many.

    Attributes:
        limit: Rate that is allowed; at 0 the first event is one too many, at 1 none ever is.

    Examples:
        >>> test = RateTest(limit=0.01)
        >>> test.add(events=1, trials=1)
        >>> test.exceeded
        False
        >>> test.add(events=2, trials=2)
        >>> test.exceeded
        True
    """

    limit: float
    events: int = 0
    trials: int = 0

    def add(self, events: int, trials: int) -> None:
        """Count some trials, and the events among them."""
        self.events += events
        self.trials += trials

    @property
    def exceeded(self) -> bool:
        """Whether the limit is exceeded, beyond reasonable doubt (:data:`ALPHA`)."""
        if self.limit <= 0.0:
            return self.events > 0
        if self.limit >= 1.0:
            return False
        alternatives = self.limit + (1.0 - self.limit) * _STEPS
        logs = self.events * np.log(alternatives / self.limit)
        logs += (self.trials - self.events) * np.log((1.0 - alternatives) / (1.0 - self.limit))
        return float(np.logaddexp.reduce(logs)) - math.log(len(logs)) >= -math.log(ALPHA)
