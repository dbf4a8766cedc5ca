"""Every score of the table, from the same answers; fitted on clean inputs that serve nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64

from benchmarks.detection.answers import Answers
from calibration.fused_fit import FusedFit, fit_fused, fused_rounds, most_telling_first
from guard.detection.entropy import entropy_of_probabilities
from guard.detection.fused import Fused
from guard.detection.plan import CheckPlan

__all__ = ["Scored", "detector_of", "measured_of", "ordered", "scored"]

_AT_ONCE = 500


@dataclass(frozen=True, eq=False)
class Scored:
    """What was measured of every input, and the scores made of it.

    Attributes:
        detector: The guard's own fused detector, fitted as calibration does; its boundary is not set.
        measured: Of every input under every overlay, as the detector has it.
        scores: By name, of every input; higher is more suspicious.
    """

    detector: Fused
    measured: Float64[np.ndarray, "n m 4"]
    scores: Mapping[str, Float64[np.ndarray, " n"]]


def ordered(answers: Answers) -> Answers:
    """Return the answers with the overlays in the order that calibration gives them."""
    fit = answers.part(0)
    order = most_telling_first(answers.predicted[fit], answers.under[fit], answers.overlay_classes)
    return replace(
        answers,
        under=answers.under[:, order],
        overlay_classes=answers.overlay_classes[order],
        overlays=answers.overlays[order],
    )


def scored(answers: Answers) -> Scored:
    """Return each score of every input; the answers' overlays are in order."""
    fit, entropies = answers.part(0), entropy_of_probabilities(answers.under)
    rounds = fused_rounds(answers.under.shape[1])
    fitted = fit_fused(
        answers.predicted[fit], answers.under[fit], entropies[fit], answers.overlay_classes, rounds
    )
    measured = measured_of(fitted, answers, entropies)
    with_surprise = fitted.measures.statistics(("departure", "surprise", "stratified"), measured)
    departure, surprise, stratified = with_surprise.T
    bits = entropies.mean(axis=1, dtype=np.float64)
    middle, spread = np.median(bits[fit]), bits[fit].std()
    scores = {
        "max-softmax": answers.alone.max(axis=1).astype(np.float64),
        "strip": -bits,
        "strip, two-sided": np.abs(bits - middle) / spread,
        "stratified": stratified,
        "departure": departure,
        "surprise": surprise,
        "fused, surprise for entropy": _with_surprise(answers, entropies).scores(measured),
        "fused": fitted.scores(measured),
    }
    return Scored(detector_of(fitted, rounds), measured, scores)


def _with_surprise(answers: Answers, entropies: np.ndarray) -> FusedFit:
    """Return what is fitted with the surprise in the entropy's place."""
    fit = answers.part(0)
    return fit_fused(
        answers.predicted[fit],
        answers.under[fit],
        entropies[fit],
        answers.overlay_classes,
        fused_rounds(answers.under.shape[1]),
        ("departure", "surprise", "stratified", "strip"),
    )


def detector_of(fitted: FusedFit, rounds: tuple[int, ...]) -> Fused:
    """Return the guard's detector; its boundary is not set."""
    return Fused(
        CheckPlan(rounds),
        fitted.measures,
        fitted.statistics,
        fitted.fusion,
        fitted.early,
        np.inf,
        takes_logits=False,
    )


def measured_of(fitted: FusedFit, answers: Answers, entropies: np.ndarray) -> Float64[np.ndarray, "n m 4"]:
    """Return what the detector measures of every input under every overlay."""
    starts = range(0, len(answers.under), _AT_ONCE)
    parts = [slice(start, start + _AT_ONCE) for start in starts]
    return np.concatenate(
        [
            fitted.measures.of_inputs(answers.predicted[part], answers.under[part], entropies[part])
            for part in parts
        ]
    )
