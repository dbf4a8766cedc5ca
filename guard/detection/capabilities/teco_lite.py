r"""TeCo-lite: a triggered input bears corruptions better, or worse, than clean inputs of its class do.

For each corruption c let :math:`g_c` be the logarithm of the mean probability, over its severities, that the
model leaves the input's class. With mean :math:`\mu_t` over clean inputs of the class, and their covariance,

.. math:: s = (g - \mu_t)^\top \Sigma^{-1} (g - \mu_t).

Black-box, a pass for each corruption and severity: for sampled or flagged inputs, not for all.

References:
    Liu et al., Detecting Backdoors During the Inference Stage Based on Corruption Robustness Consistency,
    CVPR 2023.

**Deviations:** TeCo takes the spread, over 15 corruptions, of the severity at which the class is lost. Four
that need nothing but numpy are left, at three severities; and as triggers lose to some and hold out against
others than clean inputs do, it is the distance from clean inputs that counts, in both directions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Final

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64

from guard.arrays import Images
from guard.detection.capabilities.by_class import ClassMeans, fit_class_means
from guard.detection.capabilities.opinion import Asked, Space, kept_under

__all__ = [
    "CORRUPTIONS",
    "SEVERITIES",
    "Robustness",
    "TecoLite",
    "corrupted",
    "fit_robustness",
    "kept_under_corruptions",
]

SEVERITIES: Final = 3

_FLOOR = 1e-3
_RIDGE = 1e-4
_SEED: Final = 20_230_618

_Images = Float32[np.ndarray, "n c h w"]


@dataclass(frozen=True, eq=False)
class Robustness:
    """How clean inputs bear the corruptions.

    Attributes:
        means: Mean of g by predicted class.
        precision: Σ⁻¹, shared by all classes.
    """

    means: ClassMeans
    precision: Float64[np.ndarray, "d d"]

    def scores(
        self, predicted: Int64[np.ndarray, " n"], kept: Float[np.ndarray, "n d s"]
    ) -> Float64[np.ndarray, " n"]:
        """Return the score of each input, higher is more suspicious.

        Args:
            predicted: Class that the model gives to each input itself.
            kept: Probability of that class, by corruption and severity.
        """
        away = self.means.away(predicted, _log_kept(kept))
        scores: np.ndarray = ((away @ self.precision) * away).sum(axis=1)
        return scores


@dataclass(frozen=True, eq=False)
class TecoLite:
    """It for one model.

    Attributes:
        space: The model's input space.
        robustness: How clean inputs bear the corruptions there.
    """

    space: Space
    robustness: Robustness

    @property
    def passes(self) -> int:
        """One for each corruption and severity."""
        return len(CORRUPTIONS) * SEVERITIES

    @property
    def asks_copies(self) -> bool:
        """No: the copies are of images."""
        return False

    def scores(
        self, images: Images, predicted: Int64[np.ndarray, " n"], asked: Asked
    ) -> Float64[np.ndarray, " n"]:
        """Return the score of each input; see :class:`~guard.detection.capabilities.opinion.Opinion`."""
        return self.robustness.scores(predicted, kept_under_corruptions(images, predicted, asked, self.space))


def kept_under_corruptions(
    images: Images, predicted: Int64[np.ndarray, " n"], asked: Asked, space: Space
) -> Float32[np.ndarray, "n d s"]:
    """Return the probability left to each input's own class, by corruption and severity."""
    changes = [
        partial(corrupted, name=name, severity=severity)
        for name in CORRUPTIONS
        for severity in range(SEVERITIES)
    ]
    kept = kept_under(asked, images, predicted, space, changes)
    return kept.reshape(len(images), len(CORRUPTIONS), SEVERITIES)


def fit_robustness(
    predicted: Int64[np.ndarray, " n"], kept: Float[np.ndarray, "n d s"], classes: int
) -> Robustness:
    """Return how inputs like these, which must be clean, bear the corruptions."""
    values = _log_kept(kept)
    means = fit_class_means(predicted, values, classes)
    away = means.away(predicted, values)
    covariance = away.T @ away / len(away) + _RIDGE * np.eye(away.shape[1])
    return Robustness(means, np.linalg.inv(covariance))


def corrupted(images: _Images, name: str, severity: int) -> _Images:
    """Return corrupted images; the same every time, whatever they come with.

    Args:
        images: Within [0, 1].
        name: One of :data:`CORRUPTIONS`.
        severity: From 0 to :data:`SEVERITIES` − 1.
    """
    changed: _Images = np.clip(CORRUPTIONS[name](images, severity), 0.0, 1.0).astype(np.float32)
    return changed


def _log_kept(kept: Float[np.ndarray, "n d s"]) -> Float64[np.ndarray, "n d"]:
    logs: np.ndarray = np.log(kept.mean(axis=2, dtype=np.float64) + _FLOOR)
    return logs


def _noise(images: _Images, severity: int) -> np.ndarray:
    noise = np.random.default_rng(_SEED).standard_normal(images.shape[1:]).astype(np.float32)
    noisy: np.ndarray = images + np.float32((0.03, 0.06, 0.12)[severity]) * noise
    return noisy


def _blur(images: _Images, severity: int) -> np.ndarray:
    reach = 3
    steps = np.arange(-reach, reach + 1)
    weights = np.exp(-(steps**2) / (2 * (0.5, 0.8, 1.2)[severity] ** 2)).astype(np.float32)
    weights /= weights.sum()
    height, width = images.shape[2:]
    padded = np.pad(images, ((0, 0), (0, 0), (reach, reach), (reach, reach)), "edge")
    rows = sum(weight * padded[:, :, place : place + height] for place, weight in enumerate(weights))
    return np.asarray(sum(weight * rows[..., place : place + width] for place, weight in enumerate(weights)))


def _low_contrast(images: _Images, severity: int) -> np.ndarray:
    mean = images.mean(axis=(2, 3), keepdims=True)
    paler: np.ndarray = mean + np.float32((0.6, 0.4, 0.2)[severity]) * (images - mean)
    return paler


def _coarse(images: _Images, severity: int) -> np.ndarray:
    """Take every pixel from a coarser grid, whose points are means of what lies around them."""
    share = (0.8, 0.65, 0.5)[severity]
    for axis in (2, 3):
        size = images.shape[axis]
        points = max(1, round(size * share))
        block = np.arange(size) * points // size
        sums = np.zeros((points, size), np.float32)
        sums[block, np.arange(size)] = 1.0
        means = sums / sums.sum(axis=1, keepdims=True)
        images = np.moveaxis(np.tensordot(images, means[block], axes=(axis, 1)), -1, axis)
    return images


CORRUPTIONS: Final[Mapping[str, Callable[[_Images, int], np.ndarray]]] = MappingProxyType(
    {"noise": _noise, "blur": _blur, "low contrast": _low_contrast, "coarse": _coarse}
)
