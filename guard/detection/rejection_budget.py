r"""Are more inputs found suspicious than clean ones can explain? Evidence that holds at any time.

Let :math:`r_t \in \{0, 1\}` say whether the t-th input was found suspicious, and :math:`a` be the certified
false-rejection rate. While inputs are like those of the calibration, :math:`P(r_t = 1 \mid \text{past}) \le
a`, so that whoever bets on :math:`r_t = 1` at odds that are fair at rate a,

.. math:: E_t = \prod_{s \le t} \bigl(1 + \lambda\,(r_s - a)\bigr), \qquad 0 < \lambda < 1/a,

wins nothing on average: E is a non-negative supermartingale that begins at 1, and by Ville's inequality the
chance that it *ever* reaches :math:`1/\delta` is at most :math:`\delta`, however long and however often it
is looked at.

That asks for inputs each of which is new, given those before. One that is sent again and again, or the
frames of a film, are more of the same, and the alarm comes more often.

*Which bet.* The best :math:`\lambda` against a rate :math:`\rho` is :math:`(\rho - a)/(a(1 - a))`, and
:math:`\rho` is not known. A mean of supermartingales is one, so the stake is spread evenly over bets for
excesses of :math:`a/2`, a, 2a, … up to about a half: the evidence is never further than the logarithm of
their number behind the best of them, and a bet that is wrong by :math:`\sqrt 2` still grows at 5/6 of the
best rate or more.

*When to bet.* One stake at the beginning would be lost by the time an attack comes: a million clean inputs
below the certified rate leave nothing of it. So the stake is laid bit by bit: after t inputs
:math:`1/\log_2(t + 2)` of it is still in reserve, and the rest was bet input by input. The sum of wealth
and reserve is a supermartingale that begins at 1 as before, so nothing of the guarantee is lost, and an
attack that begins at input t is bet against with a stake of about :math:`1/(t \log^2 t)`, which costs a few
suspicious inputs more.

*Wealth is capped* above the alarm, so that the evidence comes down again soon after an attack is over. To
throw wealth away is always allowed, and bounds it from above; the trickle of the reserve bounds it from
below. Numbers that stay within so few orders of magnitude need no logarithms. The alarm stands until the
evidence is back at 1.

References:
    Ville, Étude critique de la notion de collectif, 1939. Waudby-Smith, Ramdas, Estimating means of bounded
    random variables by betting, JRSS-B 2024. Shin, Ramdas, Rinaldo, E-detectors: a nonparametric framework
    for sequential change detection, NEJSDS 2024.
"""

from __future__ import annotations

from math import log2, log10
from typing import Final

__all__ = ["RejectionBudget"]

_HEADROOM: Final = 10.0
"""How far above the alarm wealth is kept."""


class RejectionBudget:
    """The evidence, input by input; constant memory.

    Args:
        rate: a, the rate at which clean inputs are found suspicious at most; in (0, 1).
        false_alarm_rate: δ, the chance that clean inputs ever raise the alarm; in (0, 1).

    Attributes:
        alarm: Raised where the evidence reaches ``1 / false_alarm_rate``, and over where it is back at 1.

    Raises:
        ValueError: If one is outside.
    """

    def __init__(self, rate: float, false_alarm_rate: float) -> None:
        if not 0.0 < rate < 1.0:
            raise ValueError(f"rate: expected a number between 0 and 1, got {rate:g}")
        if not 0.0 < false_alarm_rate < 1.0:
            raise ValueError(f"false_alarm_rate: expected a number between 0 and 1, got {false_alarm_rate:g}")
        bets = [0.5 / rate / 2**i for i in range(1 + max(0, int(log2(1.0 / rate))))]
        self._limit = 1.0 / false_alarm_rate
        self._won = [1.0 + bet * (1.0 - rate) for bet in bets]
        self._lost = [1.0 - bet * rate for bet in bets]
        self._wealth = [0.0] * len(bets)
        self._reserve = 1.0
        self._inputs = 0
        self.alarm = False

    def update(self, suspicious: bool) -> None:
        """Take in whether the next input was found suspicious."""
        self._inputs += 1
        reserve = 1.0 / log2(self._inputs + 2)
        stake = (self._reserve - reserve) / len(self._wealth)
        self._reserve = reserve
        factors = self._won if suspicious else self._lost
        self._wealth = [
            (wealth + stake) * factor for wealth, factor in zip(self._wealth, factors, strict=True)
        ]
        if suspicious:
            self._settle_gain()
        elif self.alarm:
            self.alarm = self.evidence > 1.0

    @property
    def evidence(self) -> float:
        """E; 1 to begin with, above ``1 / false_alarm_rate`` where the alarm is raised."""
        return sum(self._wealth) + self._reserve

    @property
    def log10_evidence(self) -> float:
        """Its decimal logarithm, kept within one above the alarm's; never far below 0."""
        return log10(self.evidence)

    def _settle_gain(self) -> None:
        evidence = self.evidence
        self.alarm = self.alarm or evidence >= self._limit
        excess = evidence / (_HEADROOM * self._limit)
        if excess > 1.0:
            self._wealth = [wealth / excess for wealth in self._wealth]
