r"""The fused detector: several statistics of the same blends, one score, one certified boundary.

The score of an input is the highest of what several views see of its statistics over all N blends
(:mod:`guard.detection.fusion`); it is suspicious when the score is above the boundary, which was set on
the scores of other clean inputs. That false-rejection rate is certified for the score over all N blends.

*Accepting early.* After some rounds an input is accepted when the statistics of the blends seen so far, on
scales of their own, are those of most clean inputs. That takes inputs out of those rejected and puts none
in, so the certified rate holds whatever the rules of acceptance are; only detections are at stake.

*Rejecting early.* Departure, surprise and entropy are means of numbers that are never negative. The
sums seen so far, divided by N, are what such a statistic is at least, and as no view falls where a statistic
rises, they bound the score from below. Once that is above the boundary, no later blend takes the score back
below it, so the input is rejected there and then. The layer distance is what it is from the beginning.
Those are inputs that the full score rejects, so the rate holds too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import inf, isfinite, isnan
from operator import add
from typing import ClassVar, Final

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

from guard.arrays import EntropyBits, Logits
from guard.detection.base import Decision, Evidence
from guard.detection.capabilities.layer_distances import LayerDistances
from guard.detection.entropy import softmax
from guard.detection.fusion import Fusion
from guard.detection.measurements import ENTROPY, KNOWN_EARLY, MEANS, Measures, Statistic
from guard.detection.p_values import p_value
from guard.detection.plan import CheckPlan

__all__ = ["Early", "Fused", "outcomes"]

_NEVER_FALLING: Final = frozenset({"departure", "surprise", "entropy", "layers"})
_SUMMED: Final = 3  # entropy, departure, surprise: the columns that are means

_Measured = Float64[np.ndarray, "n m 4"]
_Distances = Float64[np.ndarray, " n"] | None


@dataclass(frozen=True, eq=False)
class Early:
    """When an input is accepted before all N blends.

    Attributes:
        passes: Blends after which that may be; the end of a round.
        fusion: Scales of the statistics over these blends.
        below: A fused score strictly below it is accepted.
    """

    passes: int
    fusion: Fusion
    below: float


@dataclass(frozen=True, eq=False)
class Fused:
    """The detector.

    Attributes:
        plan: Rounds over the N ordered overlays.
        measures: What clean inputs answer.
        statistics: Which are fused.
        fusion: Their scales over all N blends.
        early: Rounds after which inputs may be accepted; their scales are those of the statistics that are
            known early, in the same order.
        boundary: A score strictly above it is suspicious.
        block_boundary: A higher one; what is between the two is only doubtful. None for no such tier.
        takes_logits: Whether the model answers logits; else probabilities.
    """

    plan: CheckPlan
    measures: Measures
    statistics: tuple[Statistic, ...]
    fusion: Fusion
    early: tuple[Early, ...]
    boundary: float
    block_boundary: float | None = None
    takes_logits: bool = True
    by_class: ClassVar[bool] = True

    @property
    def layers(self) -> LayerDistances | None:
        """What gives the layer distance; None where that is none of the statistics."""
        return self.measures.layers if "layers" in self.statistics else None

    def measure(
        self,
        predicted: Int64[np.ndarray, " p"],
        overlays: Int64[np.ndarray, " p"],
        logits: Logits,
        entropies: EntropyBits,
    ) -> Float64[np.ndarray, "p 4"]:
        """Return what is measured of each blend, see :meth:`Measures.of_blends`; surprise if it is fused."""
        with np.errstate(invalid="ignore", over="ignore"):  # what is not finite fails the check
            probabilities = softmax(logits) if self.takes_logits else logits
            return self.measures.of_blends(
                predicted, overlays, probabilities, entropies, surprise="surprise" in self.statistics
            )

    def update(self, evidence: Evidence, measured: Float[np.ndarray, "r 4"]) -> Evidence:
        """Return the evidence after the next round's blends, in the plan's order of overlays."""
        new: list[float] = measured[:, :_SUMMED].sum(axis=0).tolist()
        sums = tuple(map(add, evidence.sums, new)) if evidence.sums else tuple(new)
        passes, seen = evidence.passes + len(measured), (*evidence.measured, measured)
        now = Evidence(sums[ENTROPY], passes, evidence.distance, sums, seen)
        if not self._is_finite(now):
            return now
        return Evidence(now.entropy_sum, passes, now.distance, sums, seen, self._scored(now))

    def decide(self, evidence: Evidence) -> Decision | None:
        """Return the decision, or None while the next round is still needed."""
        if evidence.scored is None and not self._is_finite(evidence):
            return Decision.FAILED
        score, accepted = evidence.scored or self._scored(evidence)
        if evidence.passes >= self.plan.n_overlays:
            return self._tier(score)
        if accepted:
            return Decision.CLEAN
        return Decision.SUSPICIOUS if score > self._highest_boundary else None

    def score(self, evidence: Evidence) -> float:
        """Return the score over the blends seen.

        Over all N it is what boundaries are compared with. Of an input that was accepted early it is
        that of the blends seen, on their own scale; of one that was rejected early a lower bound.
        """
        return (evidence.scored or self._scored(evidence))[0]

    def p_value(self, evidence: Evidence, clean_values: Float64[np.ndarray, " n"]) -> float:
        """Return the p-value of a decided input: 1 if accepted early, an upper bound if rejected early.

        Args:
            evidence: Of the input.
            clean_values: Minus the scores over all N blends of clean inputs, ascending.
        """
        score, accepted = evidence.scored or self._scored(evidence)
        return 1.0 if accepted else p_value(-score, clean_values)

    def scores(
        self, measured: Float64[np.ndarray, "n m 4"], distances: Float64[np.ndarray, " n"] | None = None
    ) -> Float64[np.ndarray, " n"]:
        """Return the scores of inputs of which all N blends were measured.

        Args:
            measured: Of each blend.
            distances: Layer distance of each input, where that is one of the statistics.
        """
        return self.fusion.scores(self.measures.statistics(self.statistics, measured, distances))

    @cached_property
    def known_early(self) -> tuple[Statistic, ...]:
        """Those of the statistics that say something before all blends are seen."""
        return tuple(name for name in self.statistics if name in KNOWN_EARLY)

    @property
    def _highest_boundary(self) -> float:
        return self.boundary if self.block_boundary is None else self.block_boundary

    def _is_finite(self, evidence: Evidence) -> bool:
        known = self.layers is None or (evidence.distance is not None and isfinite(evidence.distance))
        return known and all(map(isfinite, evidence.sums))

    def _scored(self, evidence: Evidence) -> tuple[float, bool]:
        """Return the score of the blends seen, and whether it accepts the input early."""
        if evidence.passes >= self.plan.n_overlays:
            return self._whole(evidence), False
        accepted = self._accepted(evidence)
        return (self._at_least(evidence), False) if accepted is None else (accepted, True)

    def _whole(self, evidence: Evidence) -> float:
        """Return the score of an input of which all N blends were measured."""
        distances = None if evidence.distance is None else np.array([evidence.distance])
        return float(self.scores(np.concatenate(evidence.measured)[None], distances)[0])

    def _accepted(self, evidence: Evidence) -> float | None:
        """Return the score of the blends seen if it accepts the input, else None."""
        rule = self._rules.get(evidence.passes)
        if rule is None:
            return None
        score = rule.fusion.score(_values(self.known_early, evidence, evidence.passes))
        return score if score < rule.below else None

    def _at_least(self, evidence: Evidence) -> float:
        """Return what the score over all N blends is at least."""
        certain, fusion = self._never_falling
        return -inf if fusion is None else fusion.score(_values(certain, evidence, self.plan.n_overlays))

    @cached_property
    def _rules(self) -> Mapping[int, Early]:
        return {early.passes: early for early in self.early}

    @cached_property
    def _never_falling(self) -> tuple[tuple[Statistic, ...], Fusion | None]:
        """Return the statistics that no later blend lowers, and what they say of the score by themselves."""
        places = [place for place, name in enumerate(self.statistics) if name in _NEVER_FALLING]
        return tuple(self.statistics[place] for place in places), self.fusion.over(places)

    def _tier(self, score: float) -> Decision:
        if isnan(score):  # compares as below every boundary
            return Decision.FAILED
        if score > self._highest_boundary:
            return Decision.SUSPICIOUS
        return Decision.DOUBTFUL if score > self.boundary else Decision.CLEAN

    def _partial(self, early: Early, measured: _Measured, distances: _Distances) -> Float64[np.ndarray, " n"]:
        return early.fusion.scores(self.measures.statistics(self.known_early, measured, distances))

    def _certain(self, measured: _Measured, distances: _Distances) -> Float64[np.ndarray, " n"]:
        """Return what the score over all N blends is at least."""
        certain, fusion = self._never_falling
        if fusion is None:
            return np.full(len(measured), -inf)
        share = measured.shape[1] / self.plan.n_overlays
        statistics = self.measures.statistics(certain, measured, distances)
        known = [
            one * (1.0 if name == "layers" else share)
            for name, one in zip(certain, statistics.T, strict=True)
        ]
        return fusion.scores(np.stack(known, axis=1))


def outcomes(
    detector: Fused,
    measured: Float64[np.ndarray, "n m 4"],
    distances: Float64[np.ndarray, " n"] | None = None,
) -> tuple[Bool[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """Return of inputs of which all N blends were measured what the detector makes of each.

    Args:
        detector: The detector.
        measured: Of each blend.
        distances: Layer distance of each input, where that is one of the statistics.

    Returns:
        Whether it is beyond the lower boundary, and the passes that are spent on it.
    """
    passes = np.full(len(measured), detector.plan.n_overlays, np.int64)
    found = detector.scores(measured, distances) > detector.boundary
    undecided = np.ones(len(measured), bool)
    for end in np.cumsum(detector.plan.rounds)[:-1]:
        seen, early = measured[:, :end], detector._rules.get(int(end))
        accepted = np.zeros(len(measured), bool)
        if early is not None:
            accepted = undecided & (detector._partial(early, seen, distances) < early.below)
        rejected = undecided & ~accepted & (detector._certain(seen, distances) > detector._highest_boundary)
        found[accepted] = False
        passes[accepted | rejected] = end
        undecided &= ~(accepted | rejected)
    return found, passes


def _values(names: tuple[Statistic, ...], evidence: Evidence, passes: int) -> list[float]:
    """Return statistics of an input, sums taken as means over ``passes``."""
    return [_value(name, evidence, passes) for name in names]


def _value(name: Statistic, evidence: Evidence, passes: int) -> float:
    if name == "layers":
        return -inf if evidence.distance is None else evidence.distance
    mean = evidence.sums[MEANS[name]] / passes
    return -mean if name == "strip" else mean
