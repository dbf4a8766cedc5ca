"""What a score does: how well it tells, what it rejects of clean inputs, what it costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats

from benchmarks.detection.answers import Answers
from benchmarks.detection.scores import Scored
from calibration.errors import TooFewImagesError
from calibration.threshold import conformal_rank
from guard.detection.base import Decision
from guard.detection.entropy import entropy_of_probabilities
from guard.detection.fused import Fused, outcomes
from guard.detection.plan import CheckPlan, default_rounds
from guard.detection.strip import Strip, passes_needed

__all__ = [
    "EARLY_NAME",
    "FRR_GRID",
    "RATES",
    "auroc",
    "boundary_of",
    "figures",
    "interval",
    "of_detector",
    "rates_at",
    "row_of",
]

RATES = (0.01, 0.001)
DELTA = 0.05
EARLY_NAME = "fused, accepting early"
FRR_GRID = np.geomspace(1e-3, 1.0, 46)
"""False-rejection rates that the drawn curves have a point at."""

_BINS = np.linspace(-3.0, 5.0, 65)

Scores = Float[np.ndarray, " n"]
Decisions = Callable[[Fused], Sequence[Decision]]

REJECTED = (Decision.DOUBTFUL, Decision.SUSPICIOUS, Decision.FAILED)


WHOLE = ("strip, two-sided", "stratified", "departure", "surprise", "fused, surprise for entropy", "fused")
"""Scores over all N blends."""


def figures(answers: Answers, found: Scored, more: Decisions) -> dict[str, dict[str, Any]]:
    """Return the figures of each score, that of the guard's own detector last.

    Args:
        answers: Of one subject.
        found: The scores made of them.
        more: Gives what a detector makes of further fresh images.
    """
    rows = {name: row_of(answers, scores) for name, scores in found.scores.items()}
    rows["strip"] |= _spent(answers, _passes_of_strip(answers))
    rows[EARLY_NAME] = of_detector(answers, found.detector, found.measured, found.scores["fused"], more)
    rows["fused"]["histogram"] = _histogram(answers, found.scores["fused"])
    for name in ("max-softmax",):
        rows[name] |= {"passes clean": 0.0, "passes triggered": 0.0}
    for name in (
        "strip, two-sided",
        "stratified",
        "departure",
        "surprise",
        "fused, surprise for entropy",
        "fused",
    ):
        overlays = float(answers.under.shape[1])
        rows[name] |= {"passes clean": overlays, "passes triggered": overlays}
    return rows


def rates_at(clean: Bool[np.ndarray, " n"], triggered: Bool[np.ndarray, " n"], rate: float) -> dict[str, Any]:
    """Return what share of clean and of triggered inputs is rejected, the former with its interval."""
    return {
        f"frr at {rate:g}": float(clean.mean()),
        f"frr interval at {rate:g}": interval(int(clean.sum()), len(clean)),
        f"tpr at {rate:g}": float(triggered.mean()) if len(triggered) else None,
    }


def interval(hits: int, count: int) -> list[float]:
    """Return Clopper and Pearson's interval of a share, two-sided at 95 %."""
    found = stats.binomtest(hits, count).proportion_ci(0.95, method="exact")
    return [float(found.low), float(found.high)]


def boundary_of(scores: Scores, rate: float) -> float | None:
    """Return the score above which at most ``rate`` of clean inputs lie, with confidence; None if too few."""
    try:
        rank = conformal_rank(len(scores), rate, DELTA)
    except TooFewImagesError:
        return None
    return float(np.sort(scores)[-rank]) if rank else None


def auroc(clean: Scores, triggered: Scores) -> float | None:
    """Return the chance that a triggered input scores above a clean one, ties counting half."""
    if not len(triggered):
        return None
    ranks = stats.rankdata(np.concatenate([clean, triggered]))
    above = ranks[len(clean) :].sum() - len(triggered) * (len(triggered) + 1) / 2
    return float(above / (len(clean) * len(triggered)))


def row_of(answers: Answers, scores: Scores) -> dict[str, Any]:
    """Return AUROC, curve, and the rates at the boundary certified for each rate."""
    clean, triggered = scores[answers.part(2)], scores[answers.part(3)]
    row: dict[str, Any] = {"auroc": auroc(clean, triggered), "roc": _roc(clean, triggered)}
    for rate in RATES:
        boundary = boundary_of(scores[answers.part(1)], rate)
        if boundary is not None:
            row |= rates_at(clean > boundary, triggered > boundary, rate)
    return row


def of_detector(
    answers: Answers,
    detector: Fused,
    measured: Float[np.ndarray, "n m 4"],
    fused: Scores,
    more: Decisions = lambda _detector: (),
    distances: Scores | None = None,
) -> dict[str, Any]:
    """Return the same of the guard's detector: its boundaries are those of the score over all blends.

    Args:
        answers: Of one subject.
        detector: Fitted, its boundary not set.
        measured: Of every input under every overlay.
        fused: Its scores over all blends.
        more: Gives what a detector makes of further fresh images.
        distances: Layer distance of every input, where the detector looks at it.
    """
    fresh = answers.part(2)
    boundaries = [boundary_of(fused[answers.part(1)], rate) for rate in RATES]
    flag, block = boundaries
    assert flag is not None
    both = replace(detector, boundary=flag, block_boundary=block)
    further, row = more(both), dict[str, Any]()
    for rate, boundary in zip(RATES, boundaries, strict=True):
        if boundary is None:
            continue
        rejected, passes = outcomes(replace(detector, boundary=boundary), measured, distances)
        beyond = REJECTED if rate == RATES[0] else (Decision.SUSPICIOUS,)
        clean = np.concatenate([rejected[fresh], [one in beyond for one in further]]).astype(bool)
        row |= rates_at(clean, rejected[answers.part(3)], rate) | {"fresh": len(clean)}
        if rate == RATES[0]:
            accepted_early = (passes < answers.under.shape[1]) & ~rejected
            scores = np.where(accepted_early, -np.inf, fused)
            fresh_scores, triggered = scores[fresh], scores[answers.part(3)]
            row |= {"auroc": auroc(fresh_scores, triggered), "roc": _roc(fresh_scores, triggered)}
            row |= _spent(answers, passes)
    return row


def _roc(clean: Scores, triggered: Scores) -> list[float] | None:
    """Return the share detected at each of the grid's rates, the boundary set on these clean inputs."""
    if not len(triggered):
        return None
    boundaries = np.quantile(clean, 1 - FRR_GRID, method="higher")
    return [round(float((triggered > boundary).mean()), 4) for boundary in boundaries]


def _histogram(answers: Answers, scores: Scores) -> dict[str, list[float]]:
    def shares(part: int) -> list[float]:
        counts = np.histogram(np.clip(scores[answers.part(part)], _BINS[0], _BINS[-1]), _BINS)[0]
        return [round(float(share), 5) for share in counts / max(1, counts.sum())]

    return {"edges": _BINS.tolist(), "clean": shares(2), "triggered": shares(3)}


def _spent(answers: Answers, passes: np.ndarray) -> dict[str, Any]:
    triggered = passes[answers.part(3)]
    return {
        "passes clean": float(passes[answers.part(2)].mean()),
        "passes triggered": float(triggered.mean()) if len(triggered) else None,
    }


def _passes_of_strip(answers: Answers) -> np.ndarray:
    """Return what exact curtailment of plain STRIP spends at 1 %."""
    entropies = entropy_of_probabilities(answers.under)
    order = np.argsort(-entropies[answers.part(0)].mean(axis=0), kind="stable")
    ordered = entropies[:, order]
    boundary = boundary_of(-ordered[answers.part(1)].mean(axis=1, dtype=np.float64), RATES[0])
    strip = Strip(CheckPlan(default_rounds(ordered.shape[1])), -(boundary or 0.0))
    return passes_needed(ordered, strip)
