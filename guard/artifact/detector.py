"""The detector that an artifact was calibrated with, and its boundaries."""

from __future__ import annotations

from guard.artifact.fused_record import ScoreBoundary, fused_detector
from guard.artifact.profile import BoundaryRecord, Profile
from guard.artifact.reader import Artifact
from guard.detection.base import Detector
from guard.detection.plan import CheckPlan
from guard.detection.strip import Strip
from guard.detection.threshold import Tier

__all__ = ["Boundary", "boundaries_of", "detector_of", "promise_text", "score_of", "value_text"]

Boundary = BoundaryRecord | ScoreBoundary


def detector_of(artifact: Artifact) -> Detector:
    """Return what decides of inputs of an artifact's model, with its boundaries."""
    profile = artifact.profile
    if profile.fused is not None and artifact.measures is not None:
        logits = profile.output.kind == "logits"
        return fused_detector(profile.fused, artifact.measures, profile.check.rounds, takes_logits=logits)
    block = None if profile.block is None else profile.block.boundary_bits
    return Strip(CheckPlan(profile.check.rounds), profile.boundary.boundary_bits, block)


def boundaries_of(profile: Profile) -> tuple[tuple[Tier, Boundary], ...]:
    """Return the boundaries of the detector that decides, the lower one first; what refuses is the last."""
    block = profile.block if profile.fused is None else profile.fused.block
    if block is None:
        return ((Tier.BLOCK, profile.promise),)
    return ((Tier.FLAG, profile.promise), (Tier.BLOCK, block))


def score_of(boundary: Boundary) -> float:
    """Return a boundary as a score, above which an input is suspicious."""
    return boundary.boundary if isinstance(boundary, ScoreBoundary) else -boundary.boundary_bits


def value_text(boundary: Boundary) -> str:
    """Return a boundary in the unit that its detector has."""
    if isinstance(boundary, ScoreBoundary):
        return f"score {boundary.boundary:.4f}"
    return f"{boundary.boundary_bits:.4f} bits"


def promise_text(boundary: Boundary) -> str:
    """Return the false-rejection rate that it guarantees."""
    return "not guaranteed" if boundary.certified_frr is None else f"{boundary.certified_frr:.4%} certified"
