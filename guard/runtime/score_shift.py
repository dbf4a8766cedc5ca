r"""How far scores move with the precision, and how far they may.

A boundary is certified for scores as they were calibrated. If every score moves by up to δ, the inputs that
may change sides are those within δ of the boundary; of the calibration images, whose scores the artifact
holds, that is

.. math:: \#\{i : b \le v_i < b + \delta\}, \qquad v = -\text{score},\ b = \text{the boundary's}.

Tolerated is the largest δ for which these are at most a tenth (:data:`SHARE`) of the false-rejection rate
asked for, or one image where a tenth is less than one. The shift is measured on the stored images, which are
few, so that :data:`MARGIN` times the largest is compared.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from jaxtyping import Float64, Int64

from guard.arrays import Images
from guard.artifact import Artifact, Profile
from guard.artifact.precision import Precision
from guard.detection.base import Detector, Evidence, predicted_classes
from guard.errors import ProbeError
from guard.runtime.checked_classifier import CheckedClassifier, run_pairs

__all__ = ["MARGIN", "SHARE", "check_shift", "full_scores", "tolerated_shift"]

SHARE: Final = 0.1
MARGIN: Final = 2.0


def tolerated_shift(clean_values: Float64[np.ndarray, " n"], boundary: float, frr: float) -> float:
    """Return how far scores may move under a boundary.

    Args:
        clean_values: Minus the scores of the calibration images, ascending.
        boundary: Minus the score that is the boundary.
        frr: The false-rejection rate asked for.

    Examples:
        >>> tolerated_shift(np.array([0.25, 0.5, 1.0, 2.0]), 0.25, 0.01)
        0.25
        >>> tolerated_shift(np.linspace(0.0, 1.0, 1001), 0.1, 0.1)
        0.01
    """
    rejected = int(np.searchsorted(clean_values, boundary, side="left"))
    more = max(1, int(SHARE * frr * len(clean_values)))
    nearest = clean_values[min(rejected + more, len(clean_values) - 1)]
    return round(max(0.0, float(nearest) - boundary), 12)


def check_shift(
    classifier: CheckedClassifier,
    detector: Detector,
    artifact: Artifact,
    precision: Precision,
    *,
    max_pairs: int,
) -> None:
    """See that scores in another precision than at calibration are near enough; does nothing in the same.

    Args:
        classifier: In the precision that serves, its overlays in the plan's order.
        detector: Of the artifact.
        artifact: With the images and scores of its calibration.
        precision: The one that serves.
        max_pairs: Most pairs in one call.

    Raises:
        ProbeError: If scores move further than the boundary tolerates, or that cannot be measured.
    """
    profile, where = artifact.profile, str(artifact.directory)
    calibrated = profile.check.precision
    if precision == calibrated:
        return
    if profile.fused is not None and "layers" in profile.fused.statistics:
        raise ProbeError(
            f"{where}: calibrated in precision {calibrated!r}, and its score looks at the model's layers, "
            f"whose distances in precision {precision!r} are others; {_advice(calibrated, precision)}"
        )
    stored = _stored_scores(artifact)
    if artifact.probe is None or stored is None or len(stored) != len(artifact.probe.images):
        raise ProbeError(
            f"{where}: calibrated in precision {calibrated!r}, and holds no scores of stored images that "
            f"precision {precision!r} could be compared with; {_advice(calibrated, precision)}"
        )
    now = full_scores(classifier, detector, artifact.probe.images, max_pairs=max_pairs)
    shift, tolerated = float(np.abs(now - stored).max()), _tolerated(profile)
    if not MARGIN * shift <= tolerated:  # NaN is too far too
        raise ProbeError(
            f"{where}: precision {precision!r} moves the scores of the stored images by up to {shift:.4g} "
            f"from those in precision {calibrated!r}, expected at most {tolerated / MARGIN:.4g}, half of "
            f"what the boundary tolerates; {_advice(calibrated, precision)}"
        )


def full_scores(
    classifier: CheckedClassifier, detector: Detector, images: Images, *, max_pairs: int
) -> Float64[np.ndarray, " n"]:
    """Return the score of each image over all N blends.

    Args:
        classifier: With its overlays in the plan's order.
        detector: Which score.
        images: In the classifier's input space, layout and dtype.
        max_pairs: Most pairs in one call.
    """
    n_overlays = detector.plan.n_overlays
    known, predicted = _themselves(classifier, detector, images)
    image, overlay = np.divmod(np.arange(len(images) * n_overlays, dtype=np.int64), n_overlays)
    parts = []
    for start in range(0, len(image), max_pairs):
        part = slice(start, start + max_pairs)
        logits, bits = classifier.check(images, image[part], overlay[part])
        parts.append(detector.measure(predicted[image[part]], overlay[part], logits, bits))
    measured = np.split(np.concatenate(parts), len(images))
    return np.array([detector.score(detector.update(*one)) for one in zip(known, measured, strict=True)])


def _themselves(
    classifier: CheckedClassifier, detector: Detector, images: Images
) -> tuple[list[Evidence], Int64[np.ndarray, " n"]]:
    """Return what is known of each image before its blends, and the class that the model gives it."""
    each = np.arange(len(images), dtype=np.int64)
    alone = (images, each, np.full_like(each, -1))
    logits, _, features = run_pairs(classifier, *alone, with_layers=detector.layers is not None)
    predicted = predicted_classes(logits)
    if detector.layers is None or features is None:
        return [Evidence() for _ in images], predicted
    return [Evidence(distance=one) for one in detector.layers.scores(predicted, features).tolist()], predicted


def _stored_scores(artifact: Artifact) -> np.ndarray | None:
    fused = artifact.profile.fused
    if fused is not None:
        return None if fused.probe_scores is None else np.array(fused.probe_scores)
    return None if artifact.probe is None else -artifact.probe.mean_entropy_bits


def _tolerated(profile: Profile) -> float:
    if profile.fused is not None:
        clean = -np.array(profile.fused.clean_scores)[::-1]
        scores = [tier for tier in (profile.fused.boundary, profile.fused.block) if tier is not None]
        return min(tolerated_shift(clean, -tier.boundary, tier.frr) for tier in scores)
    clean = np.array(profile.calibration.clean_entropies_bits)
    bits = [tier for tier in (profile.boundary, profile.block) if tier is not None]
    return min(tolerated_shift(clean, tier.boundary_bits, tier.frr) for tier in bits)


def _advice(calibrated: Precision, precision: Precision) -> str:
    return (
        f"serve it in precision {calibrated!r}, or calibrate again with --precision {precision} on a device "
        f"that serves"
    )
