"""Every score of the table, from the same answers; fitted on clean inputs that serve nothing else."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float64

from benchmarks.detection.answers import Answers
from guard.detection.entropy import entropy_of_probabilities
from guard.detection.fusion import fit_fusion
from guard.detection.measurements import Measures
from guard.detection.responses import fit_responses
from guard.detection.stratified import fit_strata

__all__ = ["Ladder", "fused_ladder", "scores_of"]

Ladder = tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, " n"]]
"""Scores, minus infinity where an input was accepted on the way, and passes spent."""


def scores_of(answers: Answers) -> Mapping[str, Float64[np.ndarray, " n"]]:
    """Return each score of every input; higher is more suspicious."""
    entropies = entropy_of_probabilities(answers.under).mean(axis=1, dtype=np.float64)
    fit = answers.part(0)
    middle, spread = np.median(entropies[fit]), entropies[fit].std()
    statistics = _statistics(answers)
    return {
        "max-softmax": answers.alone.max(axis=1).astype(np.float64),
        "strip": -entropies,
        "strip, two-sided": np.abs(entropies - middle) / spread,
        "stratified": statistics[:, 2],
        "departure": statistics[:, 0],
        "surprise": statistics[:, 1],
        "fused": fit_fusion(statistics[fit]).scores(statistics),
    }


def fused_ladder(answers: Answers, rounds: tuple[int, ...], shares: tuple[float, ...]) -> Ladder:
    """Return the fused score where inputs are accepted after a round that finds them ordinary.

    Accepting early can only lower the false-rejection rate, so what is certified for all N holds.

    Args:
        answers: Of one subject.
        rounds: Blends seen at the end of each round but the last.
        shares: Share of the fitted clean inputs that each of those rounds would accept.
    """
    fit, predicted = answers.part(0), answers.predicted
    measured = _measured(answers)
    departures, surprises = measured[:, :, 1], measured[:, :, 2]
    open_still = np.ones(len(predicted), bool)
    passes = np.full(len(predicted), float(answers.under.shape[1]))
    for seen, share in zip(rounds, shares, strict=True):
        partial = np.stack([departures[:, :seen].mean(axis=1), surprises[:, :seen].mean(axis=1)], axis=1)
        scores = fit_fusion(partial[fit]).scores(partial)
        accepted = open_still & (scores < np.quantile(scores[fit], share))
        passes[accepted] = seen
        open_still &= ~accepted
    return np.where(open_still, scores_of(answers)["fused"], -np.inf), passes


def _statistics(answers: Answers) -> Float64[np.ndarray, "n 3"]:
    return _measures(answers).statistics(("departure", "surprise", "stratified"), _measured(answers))


def _measures(answers: Answers) -> Measures:
    fit, predicted, under = answers.part(0), answers.predicted, answers.under
    kept = under[np.arange(len(under)), :, predicted]
    strata = fit_strata(predicted[fit], kept[fit], answers.overlay_classes, under.shape[2])
    return Measures(fit_responses(predicted[fit], under[fit]), strata)


def _measured(answers: Answers) -> Float64[np.ndarray, "n m 4"]:
    entropies = entropy_of_probabilities(answers.under)
    return _measures(answers).of_inputs(answers.predicted, answers.under, entropies)
