"""Which images of a data set serve what, none of which a network of the zoo was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from benchmarks.zoo.source import as_floats, read_dataset, read_split
from guard.arrays import Images

__all__ = ["FIT", "Parts", "Pool", "Sizes", "drawn", "read_pool"]

FIT = 1000
"""Clean inputs that what is expected is fitted on."""


@dataclass(frozen=True)
class Sizes:
    """How much is asked of a subject.

    Attributes:
        overlays: N, as many of each class as of any other or one more; one of each at least.
        calibration: Clean inputs that boundaries are set on.
        fresh: Clean inputs that all scores are measured on, at most; the guard's detector gets all there are.
        triggered: Inputs with the trigger that the model gives the attacker's label, at most.
    """

    overlays: int = 30
    calibration: int = 3000
    fresh: int = 3000
    triggered: int = 500


@dataclass(frozen=True, eq=False)
class Pool:
    """Clean images and labels.

    Attributes:
        also_fresh: How many at the end serve as fresh images alone, as they come from another split.
    """

    images: Images
    labels: Int64[np.ndarray, " n"]
    also_fresh: int = 0


@dataclass(frozen=True, eq=False)
class Parts:
    """Rows of a pool, no two the same, but that what is stamped serves as clean inputs, too.

    Attributes:
        overlays: Class by class.
        fit: To fit on.
        calibration: To set boundaries on.
        fresh: To measure all scores on.
        more: Fresh ones that the guard's detector alone is tried on, which stops early at most.
        stamped: To stamp: what is left of the pool's own images behind the fresh ones, or those if none is.
    """

    overlays: Int64[np.ndarray, " m"]
    fit: Int64[np.ndarray, " a"]
    calibration: Int64[np.ndarray, " b"]
    fresh: Int64[np.ndarray, " c"]
    more: Int64[np.ndarray, " e"]
    stamped: Int64[np.ndarray, " d"]


def read_pool(data: Path, name: str) -> Pool:
    """Return the clean images of a data set that no network of the zoo was trained on.

    They are CIFAR-10's fifth batch and, as fresh ones, its first 1,017 test images; GTSRB's test images; the
    test images of Fashion-MNIST that are not trained on. CIFAR-10's other test images are there as JPEG only.
    """
    if name == "gtsrb":
        images, labels = read_split(data, name, "test")
        return Pool(as_floats(images), labels)
    dataset = read_dataset(data, name)
    if name != "cifar10":
        return Pool(as_floats(dataset.holdout_images), dataset.holdout_labels)
    more, more_labels = read_split(data, name, "test1k")
    return Pool(
        as_floats(np.concatenate([dataset.holdout_images, more])),
        np.concatenate([dataset.holdout_labels, more_labels]),
        len(more_labels),
    )


def drawn(pool: Pool, sizes: Sizes, seed: int) -> Parts:
    """Return who serves what."""
    labels = pool.labels[: len(pool.labels) - pool.also_fresh]
    random = np.random.default_rng(seed)
    order = random.permutation(len(labels))
    classes = np.unique(labels)
    each, over = divmod(max(sizes.overlays, len(classes)), len(classes))
    shares = [(one, each + (number < over)) for number, one in enumerate(classes)]
    overlays = np.concatenate([order[labels[order] == one][:share] for one, share in shares])
    rest = np.setdiff1d(order, overlays)
    random.shuffle(rest)
    ends = np.cumsum([FIT, sizes.calibration, sizes.fresh])
    fit, calibration, fresh, more = np.split(rest, ends)
    also = np.arange(len(labels), len(pool.labels))
    stamped = more if len(more) else fresh
    return Parts(overlays, fit, calibration, fresh, np.concatenate([more, also]), stamped)
