"""What runs the pairs of a check; :mod:`guard.runtime.scheduler` is told which."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from guard.arrays import EntropyBits, Images, Logits, PairIndex

__all__ = ["CheckedClassifier"]


@runtime_checkable
class CheckedClassifier(Protocol):
    """What the scheduler needs of a classifier."""

    def check(
        self, images: Images, image_index: PairIndex, overlay_index: PairIndex
    ) -> tuple[Logits, EntropyBits]:
        """Return output and entropy of each pair, as ``OnnxClassifier.check`` does."""
        ...
