"""``guard audit frr``: does the certified false-rejection rate hold on fresh clean images?

::

    read ─→ check ─→ count ─→ tell
    artifact,  round by round,   rejections of   a table, JSON,
    images     as it serves      each tier       the exit code
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from jaxtyping import Bool

from calibration.audit.bounds import Rejections, Standing, images_to_confirm
from calibration.audit.fresh import Fresh, read_fresh
from calibration.audit.options import FrrOptions
from calibration.checking import Checked, check_images
from calibration.progress import Progress
from calibration.threshold import minimum_images
from guard.artifact import Artifact, read_artifact
from guard.artifact.detector import Boundary, boundaries_of, detector_of
from guard.detection.base import Decision
from guard.detection.threshold import Tier, tier_of
from guard.errors import UnfitModelError
from guard.runtime.onnx_classifier import ORT_ERRORS
from guard.runtime.opening import RuntimeOptions, open_classifier

__all__ = ["ClassAudit", "FrrAudit", "TierAudit", "audit_frr", "by_class"]


@dataclass(frozen=True)
class ClassAudit:
    """What was found of the images that the model gives one class.

    Attributes:
        label: The class.
        found: Rejections among them; bounds as for all images, each on its own.
        stands_out: Whether the class is rejected more often than the rate by more than the chance that any
            of the classes told would be, at the audit's confidence.
    """

    label: int
    found: Rejections
    stands_out: bool


@dataclass(frozen=True)
class TierAudit:
    """What was found of one boundary.

    Attributes:
        tier: Which.
        boundary: As the profile has it.
        found: Inputs beyond it; those beyond a higher one too.
        classes: Those with images enough to confirm the rate of each, the most rejected first.
        others: Images of the other classes.
        needed: Fewest images that confirm the rate if as many are rejected as here; None for no number.
    """

    tier: Tier
    boundary: Boundary
    found: Rejections
    classes: tuple[ClassAudit, ...]
    others: int
    needed: int | None

    @property
    def rate(self) -> float:
        """The rate that is audited: what was certified, or what was aimed at where nothing was."""
        return _rate(self.boundary)

    @property
    def standing(self) -> Standing:
        """Whether it holds."""
        return self.found.standing(self.rate)


@dataclass(frozen=True, eq=False)
class FrrAudit:
    """An audit.

    Attributes:
        fresh: The images.
        checked: What was made of those that could be checked.
        failed: How many of these the model answered with what is not finite.
        accuracy: Share of them classified as labelled; None without labels.
        tiers: The lower boundary first.
        mean_passes: Blends for an image, on average.
        device: Where the model ran.
        started: When, ISO 8601 in UTC.
        seconds: Wall-clock time.
    """

    options: FrrOptions
    artifact: Artifact
    fresh: Fresh
    checked: Checked
    failed: int
    accuracy: float | None
    tiers: tuple[TierAudit, ...]
    mean_passes: float
    device: str
    started: str
    seconds: float

    @property
    def refuted(self) -> bool:
        """Whether a rate is provably exceeded."""
        return any(tier.standing == "refuted" for tier in self.tiers)


def audit_frr(options: FrrOptions) -> FrrAudit:
    """Run fresh clean images through the check that serves, and see whether the certified rate holds.

    Raises:
        GuardError: Artifact, images or options are not fit.
    """
    start, started = time.perf_counter(), datetime.now(UTC).isoformat(timespec="seconds")
    artifact = read_artifact(options.artifact.resolve())
    fresh = read_fresh(artifact, options)
    checked, device = _check(artifact, fresh, options)
    decided = np.array([decision is not Decision.FAILED for decision in checked.decisions], np.bool_)
    if not decided.any():
        raise UnfitModelError(
            f"{options.artifact} answers all {len(decided)} images with NaN or infinite scores, so nothing "
            f"can be audited; calibrate the model again, or export it again"
        )
    labels = fresh.images.labels
    right = None if labels is None else checked.predicted == labels[fresh.checkable]
    return FrrAudit(
        options=options,
        artifact=artifact,
        fresh=fresh,
        checked=checked,
        failed=int((~decided).sum()),
        accuracy=None if right is None else float(right.mean()),
        tiers=tuple(
            _tier_audit(tier, boundary, checked, decided, options.delta)
            for tier, boundary in boundaries_of(artifact.profile)
        ),
        mean_passes=float(checked.passes[decided].mean()),
        device=device,
        started=started,
        seconds=time.perf_counter() - start,
    )


def by_class(
    predicted: np.ndarray, rejected: Bool[np.ndarray, " n"], rate: float, delta: float
) -> tuple[ClassAudit, ...]:
    """Return what was found of each predicted class with images enough to confirm the rate of it alone.

    Args:
        predicted: Class of each image that was decided.
        rejected: Whether it was.
        rate: To hold.
        delta: Risk that a bound does not hold.
    """
    labels, counts = np.unique(predicted, return_counts=True)
    enough = labels[counts >= minimum_images(rate, delta)].tolist()
    audits = []
    for label in enough:
        own = rejected[predicted == label]
        found = Rejections(int(own.sum()), len(own), delta)
        of_any = Rejections(found.rejected, found.of, delta / len(enough))
        audits.append(ClassAudit(label, found, of_any.lower > rate))
    return tuple(sorted(audits, key=lambda audit: (-audit.found.rate, audit.label)))


def _tier_audit(
    tier: Tier,
    boundary: Boundary,
    checked: Checked,
    decided: Bool[np.ndarray, " n"],
    delta: float,
) -> TierAudit:
    counted = {Tier.BLOCK} if tier is Tier.BLOCK else set(Tier)
    beyond = np.array([tier_of(decision) in counted for decision in checked.decisions], np.bool_)[decided]
    found = Rejections(int(beyond.sum()), len(beyond), delta)
    rate = _rate(boundary)
    classes = by_class(checked.predicted[decided], beyond, rate, delta)
    return TierAudit(
        tier=tier,
        boundary=boundary,
        found=found,
        classes=classes,
        others=len(beyond) - sum(each.found.of for each in classes),
        needed=images_to_confirm(found.rate, rate, delta),
    )


def _rate(boundary: Boundary) -> float:
    return boundary.frr if boundary.certified_frr is None else boundary.certified_frr


def _check(artifact: Artifact, fresh: Fresh, options: FrrOptions) -> tuple[Checked, str]:
    images, detector = fresh.images.images[fresh.checkable], detector_of(artifact)
    running = RuntimeOptions(device=options.device, threads=options.threads, max_batch_pairs=fresh.batch)
    try:
        classifier, _ = open_classifier(artifact, detector, running)
        with classifier, Progress(len(images), "fresh images", options.quiet) as progress:
            checked = check_images(classifier, detector, images, fresh.prepare, fresh.batch, progress)
            return checked, classifier.device
    except ORT_ERRORS as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UnfitModelError(
            f"{options.artifact} failed while running: {reason}; `guard verify` says whether it is whole"
        ) from error
