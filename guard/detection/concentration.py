r"""Are the suspicious inputs of one class? A trigger leads to its target; a drift touches all classes.

Of the last inputs, older ones counting less and less, let :math:`s_c` be the share of class c among the
suspicious ones, :math:`q_c` among the others, by the class that the model predicts, and S the number of
suspicious ones. They *concentrate* in the class of the largest

.. math:: \phi_c = \frac{s_c - q_c}{1 - q_c},

the part of them that is there beyond the class's share of the traffic, if that is half of them or more and
chance does not explain it: if suspicious inputs were spread as the others are, then by Chernoff's bound

.. math:: P(\text{such a share in any of the k classes}) \le k\, e^{-S\,\mathrm{KL}(s_c \| q_c)} \le \delta.

The bound holds for weighted counts too, as no weight is above 1. It is one of a single look, not of all
looks for ever: it is there to tell what an alarm is about, not to raise one. Shares are compared with those
of the inputs *not* found suspicious, so that an attack that is most of the traffic is not its own
yardstick.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log
from typing import Final

import numpy as np

__all__ = ["PART", "ClassCounts", "Concentration"]

MEMORY: Final = 1000
"""Inputs after which one counts 1/e of what it did."""

PART: Final = 0.5
"""Part of the suspicious inputs that one class has to hold beyond its share."""

_HEAVY: Final = 1e100


@dataclass(frozen=True)
class Concentration:
    """The class that holds most of the suspicious inputs beyond its share.

    Attributes:
        label: Its index.
        share_of_suspicious: s, its share of the suspicious inputs.
        share_of_others: q, its share of the others.
        part: φ, the part of the suspicious inputs that is there beyond its share.
        significant: Whether chance is ruled out.
    """

    label: int
    share_of_suspicious: float
    share_of_others: float
    part: float
    significant: bool

    @property
    def one_sided(self) -> bool:
        """Whether the suspicious inputs concentrate there, provably."""
        return self.significant and self.part >= PART


class ClassCounts:
    """Counts by predicted class, exponentially forgotten; two numbers a class.

    Args:
        classes: k, the model's classes.
        false_alarm_rate: δ, in (0, 1).
    """

    def __init__(self, classes: int, false_alarm_rate: float) -> None:
        self._suspicious = [0.0] * classes
        self._others = [0.0] * classes
        self._weight = 1.0  # of the next input; old ones fade as it grows
        self._growth = 1.0 / (1.0 - 1.0 / MEMORY)
        self._least_nats = log(classes / false_alarm_rate)

    def add(self, label: int, suspicious: bool) -> None:
        """Count an input that the model gave this class."""
        (self._suspicious if suspicious else self._others)[label] += self._weight
        self._weight *= self._growth
        if self._weight > _HEAVY:
            self._suspicious = [count / self._weight for count in self._suspicious]
            self._others = [count / self._weight for count in self._others]
            self._weight = 1.0

    def concentration(self) -> Concentration | None:
        """Return where the suspicious inputs are beyond the traffic; None where there are none."""
        suspicious = np.asarray(self._suspicious) / self._weight
        others = np.asarray(self._others) / self._weight
        count = float(suspicious.sum())
        if not count:
            return None
        held = suspicious / count
        expected = (others + 1.0) / (others.sum() + len(others))  # Laplace: nothing seen is not impossible
        parts = (held - expected) / (1.0 - expected)
        label = int(parts.argmax())
        s, q = float(held[label]), float(expected[label])
        significant = s > q and count * _divergence_nats(s, q) >= self._least_nats
        return Concentration(label, s, q, float(parts[label]), significant)


def _divergence_nats(s: float, q: float) -> float:
    """Return the Kullback-Leibler divergence of one coin from another, 0 < q < 1."""
    heads = s * log(s / q) if s > 0.0 else 0.0
    tails = (1.0 - s) * log((1.0 - s) / (1.0 - q)) if s < 1.0 else 0.0
    return heads + tails
