"""The check of ``tiny_models.linear_classifier`` in plain numpy, and images whose verdicts are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from guard.detection.entropy import entropy_of_logits
from guard.detection.strip import mean_entropies
from guard.detection.superimpose import BLEND_RULES, ValueRange, superimpose
from tests.artifacts import make_profile, random_images
from tests.tiny_models import linear_classifier, linear_weights

UNIT = ValueRange((0.0,), (1.0,), 0)
N_OVERLAYS = 8
_COUNT, _SUSPICIOUS = 8, 2


def linear_logits(images: np.ndarray) -> np.ndarray:
    """Return the logits of ``linear_classifier()``, float32 (n, 10)."""
    weight, bias = linear_weights()
    return images.reshape(len(images), -1) @ weight + bias


def blend_entropies(images: np.ndarray, overlays: np.ndarray, blend: str = "add") -> np.ndarray:
    """Return the entropy of each image with each overlay, bits (n, m)."""
    blends = superimpose(images, overlays, BLEND_RULES[blend], UNIT)
    flat = blends.reshape(len(images) * len(overlays), -1)
    return entropy_of_logits(linear_logits(flat)).reshape(len(images), len(overlays))


def tiny_overlays() -> np.ndarray:
    """Return the overlays that ``write_tiny_artifact`` writes beside ``linear_classifier()``."""
    return random_images(make_profile(linear_classifier()), N_OVERLAYS, seed=99)


def overlays_of(directory: Path) -> np.ndarray:
    """Return the overlays of an artifact."""
    overlays: np.ndarray = np.load(directory / "overlays.npy")
    return overlays


def images_and_boundary() -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Return clean images, suspicious images, all their mean entropies, and the boundary between.

    The mean entropies come in the order clean, suspicious; the boundary lies in the middle of the gap
    between the second and the third lowest.
    """
    images = random_images(make_profile(linear_classifier()), _COUNT, seed=1)
    means = mean_entropies(blend_entropies(images, tiny_overlays()))
    order = np.argsort(means)
    low, high = order[:_SUSPICIOUS], order[_SUSPICIOUS:]
    boundary = float((means[low].max() + means[high].min()) / 2)
    return images[high], images[low], np.concatenate([means[high], means[low]]), boundary
