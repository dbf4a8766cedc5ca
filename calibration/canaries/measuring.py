"""What each setting of a check finds of triggered images, from a model's answers under all overlays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import mean

import numpy as np
from jaxtyping import Bool, Float32, Int64

from calibration.canaries.choice import Found, Setting
from calibration.evaluation.numbers import share
from calibration.fused_fit import FusedFit, fit_fused, fused_rounds, most_telling_first
from calibration.scoring import most_uncertain_first
from calibration.threshold import conformal_boundary, score_boundary
from guard.detection.fused import Fused, outcomes
from guard.detection.measurements import Statistic
from guard.detection.plan import CheckPlan, default_rounds
from guard.detection.strip import Strip, mean_entropies, passes_needed

__all__ = ["Asked", "Finding", "Rate", "Subject", "found_by", "settings_of", "together"]


@dataclass(frozen=True, eq=False)
class Asked:
    """Answers of a model to some images under all overlays, by one blend rule.

    Attributes:
        predicted: Class that the model gives to each image itself.
        probabilities: Of each under each overlay.
        entropies: Of those, bits.
    """

    predicted: Int64[np.ndarray, " n"]
    probabilities: Float32[np.ndarray, "n m k"]
    entropies: Float32[np.ndarray, "n m"]

    def rows(self, rows: Int64[np.ndarray, " _"]) -> Asked:
        """Return the answers to some of the images."""
        return Asked(self.predicted[rows], self.probabilities[rows], self.entropies[rows])

    def under(self, overlays: Int64[np.ndarray, " _"]) -> Asked:
        """Return the answers under some of the overlays, in that order."""
        return Asked(self.predicted, self.probabilities[:, overlays], self.entropies[:, overlays])


@dataclass(frozen=True, eq=False)
class Subject:
    """One model by one rule.

    Attributes:
        fit: Clean images that the detector is fitted on.
        clean: Others, that the boundary is set on.
        triggered: Images for which a trigger succeeds, by kind.
        overlay_classes: Class that the model gives to each overlay; any first N of them are as even over
            the classes as they can be.
    """

    fit: Asked
    clean: Asked
    triggered: Mapping[str, Asked]
    overlay_classes: Int64[np.ndarray, " m"]

    def under(self, overlays: Int64[np.ndarray, " _"]) -> Subject:
        """Return the answers under some of the overlays, in that order."""
        triggered = {kind: asked.under(overlays) for kind, asked in self.triggered.items()}
        classes = self.overlay_classes[overlays]
        return Subject(self.fit.under(overlays), self.clean.under(overlays), triggered, classes)


@dataclass(frozen=True)
class Rate:
    """The false-rejection rate that boundaries are set for, and the risk that it is exceeded."""

    frr: float
    delta: float


@dataclass(frozen=True, eq=False)
class Finding:
    """Which triggered images one setting finds in one model, by kind, and blends spent on a clean image."""

    setting: Setting
    found: Mapping[str, Bool[np.ndarray, " n"]]
    passes_clean: float


def settings_of(
    blends: Sequence[str], overlays: Sequence[int], statistics: Sequence[tuple[Statistic, ...]]
) -> list[Setting]:
    """Return every setting to try: each of the rules with each N and each set of statistics."""
    return [Setting(*some) for some in product(blends, overlays, statistics)]


def found_by(setting: Setting, subject: Subject, rate: Rate) -> Finding:
    """Return what a setting finds in a model that was asked by the setting's rule.

    Raises:
        TooFewImagesError: If the clean images cannot certify the rate.
    """
    first = subject.under(np.arange(setting.overlays, dtype=np.int64))
    return _by_fused(setting, first, rate) if setting.fused else _by_strip(setting, first, rate)


def together(findings: Sequence[Finding]) -> Found:
    """Return what one setting found in several models, as shares with intervals."""
    found = {kind: hits for one in findings for kind, hits in one.found.items()}
    shares = {kind: share(hits) for kind, hits in found.items()}
    return Found(findings[0].setting, shares, mean(one.passes_clean for one in findings))


def _by_strip(setting: Setting, subject: Subject, rate: Rate) -> Finding:
    subject = subject.under(most_uncertain_first(subject.fit.entropies))
    clean = subject.clean.entropies
    boundary = conformal_boundary(mean_entropies(clean), rate.frr, rate.delta, may_be_zero=True)
    strip = Strip(CheckPlan(default_rounds(setting.overlays)), boundary.boundary_bits)
    found = {
        kind: mean_entropies(asked.entropies) < boundary.boundary_bits
        for kind, asked in subject.triggered.items()
    }
    return Finding(setting, found, float(passes_needed(clean, strip).mean()))


def _by_fused(setting: Setting, subject: Subject, rate: Rate) -> Finding:
    order = most_telling_first(subject.fit.predicted, subject.fit.probabilities, subject.overlay_classes)
    subject = subject.under(order)
    rounds = fused_rounds(setting.overlays)
    fit = _fitted(subject, rounds, setting.statistics)
    clean = _measured(fit, subject.clean)
    boundary = score_boundary(fit.scores(clean), rate.frr, rate.delta).boundary
    detector = _detector(fit, rounds, boundary)
    found = {kind: outcomes(detector, _measured(fit, asked))[0] for kind, asked in subject.triggered.items()}
    return Finding(setting, found, float(outcomes(detector, clean)[1].mean()))


def _fitted(subject: Subject, rounds: tuple[int, ...], statistics: tuple[Statistic, ...]) -> FusedFit:
    asked = subject.fit
    return fit_fused(
        asked.predicted, asked.probabilities, asked.entropies, subject.overlay_classes, rounds, statistics
    )


def _measured(fit: FusedFit, asked: Asked) -> np.ndarray:
    return fit.measures.of_inputs(asked.predicted, asked.probabilities, asked.entropies)


def _detector(fit: FusedFit, rounds: tuple[int, ...], boundary: float) -> Fused:
    return Fused(CheckPlan(rounds), fit.measures, fit.statistics, fit.fusion, fit.early, boundary)
