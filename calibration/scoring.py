"""Run clean images through the very check that serves, all N blends of each, in device batches.

Pairs (image, overlay) are numbered image by image and cut into batches of equal size, so memory is
bounded whatever n and N are, and a batch may end in the middle of an image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int64, Num

from calibration.progress import Progress
from guard.arrays import EntropyBits, Images, Logits, PairIndex
from guard.detection.strip import mean_entropies
from guard.errors import UnfitModelError

__all__ = [
    "Checker",
    "answer_blends",
    "answer_images",
    "batch_size",
    "most_uncertain_first",
    "predict",
    "score_images",
]

Place = tuple[PairIndex, PairIndex]
"""Image and overlay of each blend."""

_BATCH_BYTES: Final = 32 * 2**20
_LARGEST_BATCH: Final = 256
_SMALLEST_BATCH: Final = 8


@runtime_checkable
class Checker(Protocol):
    """The part of :class:`guard.runtime.onnx_classifier.OnnxClassifier` that scoring needs."""

    def logits(self, images: Images) -> Logits:
        """Return the model's raw output for each image."""

    def check(
        self, images: Images, image_index: PairIndex, overlay_index: PairIndex
    ) -> tuple[Logits, EntropyBits]:
        """Return the model's output and its entropy, bits, for each pair."""


def batch_size(row_bytes: int) -> int:
    """Return how many model inputs of ``row_bytes`` bytes go into one call.

    Examples:
        >>> batch_size(3 * 32 * 32 * 4), batch_size(3 * 224 * 224 * 4)
        (256, 55)
    """
    return max(_SMALLEST_BATCH, min(_LARGEST_BATCH, _BATCH_BYTES // row_bytes))


def predict(
    classifier: Checker,
    images: Num[np.ndarray, "n h w c"],
    prepare: Callable[[np.ndarray], Images],
    batch: int,
    progress: Progress,
) -> Logits:
    """Return the model's raw output for each image.

    Args:
        classifier: The model.
        images: Images as stored.
        prepare: Turns stored images into model inputs.
        batch: Images in one call.
        progress: Told of each image.
    """
    parts = []
    for start, stop in _batches(len(images), batch):
        parts.append(classifier.logits(prepare(images[start:stop])))
        progress.step(stop - start)
    return np.concatenate(parts)


def score_images(
    classifier: Checker,
    images: Num[np.ndarray, "n h w c"],
    prepare: Callable[[np.ndarray], Images],
    n_overlays: int,
    batch: int,
    progress: Progress,
) -> Float32[np.ndarray, "n m"]:
    """Return the entropy, in bits, of each image blended with each of the classifier's overlays.

    Args:
        classifier: The model with its overlays and blend rule.
        images: Images as stored.
        prepare: Turns stored images into model inputs.
        n_overlays: Number of overlays the classifier holds.
        batch: Pairs in one call.
        progress: Told of each pair.

    Raises:
        UnfitModelError: If an entropy is not finite.
    """
    entropies = np.empty((len(images), n_overlays), np.float32)
    for place, answers in answer_blends(classifier, images, prepare, n_overlays, batch, progress):
        entropies[place] = answers[1]
    return entropies


def answer_images(
    classifier: Checker,
    images: Num[np.ndarray, "n h w c"],
    prepare: Callable[[np.ndarray], Images],
    n_overlays: int,
    batch: int,
    progress: Progress,
) -> tuple[Float32[np.ndarray, "n m k"], Float32[np.ndarray, "n m"]]:
    """Return the model's raw output and its entropy, bits, as :func:`score_images` does the latter."""
    outputs: Float32[np.ndarray, "n m k"] | None = None
    entropies = np.empty((len(images), n_overlays), np.float32)
    for place, (logits, bits) in answer_blends(classifier, images, prepare, n_overlays, batch, progress):
        if outputs is None:
            outputs = np.empty((*entropies.shape, logits.shape[1]), np.float32)
        outputs[place], entropies[place] = logits, bits
    if outputs is None:
        raise ValueError("images: expected one at least, got none")
    return outputs, entropies


def answer_blends(
    classifier: Checker,
    images: Num[np.ndarray, "n h w c"],
    prepare: Callable[[np.ndarray], Images],
    n_overlays: int,
    batch: int,
    progress: Progress,
) -> Iterator[tuple[Place, tuple[Logits, EntropyBits]]]:
    """Yield, batch by batch, images and overlays of blends, and the model's output and its entropy, bits.

    Raises:
        UnfitModelError: If an entropy is not finite.
    """
    for start, stop in _batches(len(images) * n_overlays, batch):
        image, overlay = np.divmod(np.arange(start, stop, dtype=np.int64), n_overlays)
        rows = prepare(images[image[0] : image[-1] + 1])
        logits, entropies = classifier.check(rows, image - image[0], overlay)
        _refuse_non_finite(entropies, image, overlay)
        yield (image, overlay), (logits, entropies)
        progress.step(stop - start)


def most_uncertain_first(entropies: Float32[np.ndarray, "n m"]) -> Int64[np.ndarray, " m"]:
    """Return the overlays ordered by mean clean entropy, highest first.

    The order changes no verdict; this one lets the partial sums of clean inputs grow fastest, so that
    they are accepted after the fewest passes.

    Examples:
        >>> most_uncertain_first(np.array([[0.1, 0.9, 0.5]], np.float32)).tolist()
        [1, 2, 0]
    """
    return np.argsort(-mean_entropies(entropies.T), kind="stable")


def _batches(total: int, size: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + size, total)) for start in range(0, total, size))


def _refuse_non_finite(entropies: EntropyBits, image: PairIndex, overlay: PairIndex) -> None:
    finite = np.isfinite(entropies)
    if not finite.all():
        first = int(finite.argmin())
        raise UnfitModelError(
            f"the model answers {int((~finite).sum())} of {finite.size} blends in a batch with NaN or "
            f"infinite scores, first image {image[first]} with overlay {overlay[first]}; try --blend convex, "
            f"which stays within the images' range"
        )
