"""The golden probe: a few images, what a model answers to them, and whether it still does once it is loaded.

How close is close enough. The same graph on another processor, another version of ONNX Runtime or CUDA
sums in another order. Measured on the networks of the bench (32 × 32 images), as a share of the largest
logit: all optimisations of ONNX Runtime against none move logits by 4e-7, weights rounded to float16 by up
to 2e-3, weights rounded to 8 bits by 1.5e-2 to 3e-2, and another network for the same task by 1.1.
:data:`TOLERANCE` lies between what arithmetic can do and what a wrong model does: 2 % of the scale, which is
the largest logit for logits and log2(classes), the largest there can be, for entropies. :data:`FLOOR` is for
models whose answers are all next to 0, where rounding is all there is.
"""

from __future__ import annotations

from typing import Final, Protocol, runtime_checkable

import numpy as np

from guard.arrays import EntropyBits, Images, Logits, PairIndex
from guard.artifact.probe import Probe
from guard.detection.strip import mean_entropies
from guard.errors import ProbeError
from guard.runtime.onnx_classifier import ORT_ERRORS

__all__ = ["FLOOR", "TOLERANCE", "Answers", "check_logits", "check_probe", "take_probe"]

TOLERANCE: Final = 0.02
"""How far an answer may be off, as a share of the largest logit, or of log2(classes) for an entropy."""

FLOOR: Final = 1e-3
"""What is allowed on top of it: logits or probabilities as they are, entropies in bits."""


@runtime_checkable
class Answers(Protocol):
    """The part of :class:`~guard.runtime.onnx_classifier.OnnxClassifier` that a probe needs."""

    def check(
        self, images: Images, image_index: PairIndex, overlay_index: PairIndex
    ) -> tuple[Logits, EntropyBits]:
        """Return output and entropy, bits, of each (image, overlay) pair."""
        ...


def take_probe(classifier: Answers, images: Images, n_overlays: int, *, max_pairs: int) -> Probe:
    """Return these images with the classifier's answers.

    Args:
        classifier: With its overlays in the plan's order.
        images: Clean images in its input space, layout and dtype.
        n_overlays: N, all of which are blended with each image.
        max_pairs: Most pairs in one call.
    """
    count = len(images)
    each = np.arange(count, dtype=np.int64)
    logits = classifier.check(images, each, np.full(count, -1, np.int64))[0]
    entropies = np.empty(count * n_overlays, np.float32)
    for start in range(0, len(entropies), max_pairs):
        pairs = np.arange(start, min(start + max_pairs, len(entropies)), dtype=np.int64)
        image, overlay = np.divmod(pairs, n_overlays)
        entropies[pairs] = classifier.check(images, image, overlay)[1]
    return Probe(images, logits, mean_entropies(entropies.reshape(count, n_overlays)))


def check_probe(classifier: Answers, stored: Probe, n_overlays: int, *, max_pairs: int, where: str) -> float:
    """Ask a loaded model what it was asked when it was calibrated.

    Args:
        classifier: With its overlays in the plan's order.
        stored: What it answered then.
        n_overlays: N.
        max_pairs: Most pairs in one call.
        where: The artifact, for errors.

    Returns:
        How far the mean entropies are off, bits, at most.

    Raises:
        ProbeError: If a logit or an entropy is further off than :data:`TOLERANCE` and :data:`FLOOR` allow, or
            an image comes into another class by more than that; NaN is always too far. If the model fails.
    """
    try:
        now = take_probe(classifier, stored.images, n_overlays, max_pairs=max_pairs)
    except ORT_ERRORS as error:
        raise ProbeError(f"{where}: the model fails on the stored images ({error}); {_ADVICE}") from error
    check_logits(now.logits, stored, where)
    bits_may_differ = FLOOR + TOLERANCE * float(np.log2(stored.logits.shape[1]))
    _compare(now.mean_entropy_bits, stored.mean_entropy_bits, bits_may_differ, "mean entropies", where)
    return float(np.abs(now.mean_entropy_bits - stored.mean_entropy_bits).max())


def check_logits(now: Logits, stored: Probe, where: str) -> None:
    """Compare answers to the stored images with those at calibration.

    Raises:
        ProbeError: As :func:`check_probe`.
    """
    may_differ = FLOOR + TOLERANCE * float(np.abs(stored.logits).max())
    _compare(now, stored.logits, may_differ, "logits", where)
    _compare_classes(now, stored.logits, may_differ, where)


def _compare(now: np.ndarray, stored: np.ndarray, may_differ: float, what: str, where: str) -> None:
    off = np.abs(now.astype(np.float64) - stored)
    wrong = ~(off <= may_differ)  # NaN is wrong too
    if wrong.any():
        image = int(np.argwhere(wrong)[0][0])
        raise ProbeError(
            f"{where}: the model answers the stored image {image} with {what} up to {off[image].max():.4g} "
            f"off those at calibration, expected at most {may_differ:.4g}; {_ADVICE}"
        )


def _compare_classes(now: np.ndarray, stored: np.ndarray, may_differ: float, where: str) -> None:
    rows = np.arange(len(stored))
    classes, then = now.argmax(axis=1), stored.argmax(axis=1)
    wrong = stored[rows, then] - stored[rows, classes] > may_differ
    if wrong.any():
        image = int(wrong.argmax())
        raise ProbeError(
            f"{where}: the model puts the stored image {image} into class {classes[image]}, at calibration "
            f"into {then[image]}; {_ADVICE}"
        )


_ADVICE: Final = (
    "it is run otherwise than where it was calibrated: compare device and version of ONNX Runtime with "
    "report.json, or calibrate again here"
)
