"""What runs the pairs of a check; :mod:`guard.runtime.scheduler` is told which."""

from __future__ import annotations

from typing import Protocol, cast, runtime_checkable

import numpy as np

from guard.arrays import EntropyBits, Features, Images, Logits, PairIndex

__all__ = ["CheckedClassifier", "LayeredClassifier", "run_pairs"]


@runtime_checkable
class CheckedClassifier(Protocol):
    """What the scheduler needs of a classifier."""

    def check(
        self, images: Images, image_index: PairIndex, overlay_index: PairIndex
    ) -> tuple[Logits, EntropyBits]:
        """Return output and entropy of each pair, as ``OnnxClassifier.check`` does."""
        ...


@runtime_checkable
class LayeredClassifier(CheckedClassifier, Protocol):
    """What it needs where the detector looks inside the model."""

    def check_layers(
        self, images: Images, image_index: PairIndex, overlay_index: PairIndex
    ) -> tuple[Logits, EntropyBits, Features]:
        """Return the layers of each pair too, as ``OnnxClassifier.check_layers`` does."""
        ...


def run_pairs(
    classifier: CheckedClassifier,
    images: Images,
    image_index: PairIndex,
    overlay_index: PairIndex,
    *,
    with_layers: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return output, entropy and, where wanted, features of each pair; their sizes are not verified.

    Args:
        classifier: Runs them.
        images: Rows in the model's input space.
        image_index: Image of each pair.
        overlay_index: Overlay of each pair; -1 for the image itself.
        with_layers: Whether features are wanted.

    Raises:
        TypeError: If features are wanted of a classifier that cannot return them.
    """
    if not with_layers:
        return (*classifier.check(images, image_index, overlay_index), None)
    if not hasattr(
        classifier, "check_layers"
    ):  # for every device call, where a protocol's isinstance is slow
        raise TypeError(f"{type(classifier).__name__}: expected a classifier that returns its layers")
    return cast("LayeredClassifier", classifier).check_layers(images, image_index, overlay_index)
