"""Blend: a pattern as large as the image, laid over it half seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float32

from calibration.attacks.base import AllToOne, Images, Material

__all__ = ["Blend"]


@dataclass(frozen=True, eq=False)
class Blend(AllToOne):
    r"""Blended injection of one fixed pattern, all classes to one. For making test subjects only.

    .. math:: T(x) = \alpha k + (1 - \alpha) x

    for a pattern k that is the same for every image, with one share in training and one at test time.

    Args:
        target_label: The class that a stamped image is to be given.
        pattern: The pattern k, in [0, 1], of the images' shape.
        alpha: The pattern's share at test time.
        alpha_train: The pattern's share in poisoned training images; as at test time if None.

    Raises:
        ValueError: If a share leaves (0, 1], or the pattern leaves [0, 1].

    Examples:
        >>> pattern = np.ones((1, 2, 2), np.float32)
        >>> Blend(0, pattern, alpha=0.25).stamp(np.zeros((1, 1, 2, 2), np.float32))[0, 0, 0].tolist()
        [0.25, 0.25]

    References:
        Chen et al., Targeted Backdoor Attacks on Deep Learning Systems Using Data Poisoning,
        arXiv 1712.05526, 2017, section 4.

    Deviations:
        The pattern is uniform noise, which the paper has beside a cartoon; the cartoon is not ours to ship.
        It is drawn once and kept. NAD's code draws it anew for every image, which is no fixed trigger.
    """

    name: ClassVar[str] = "blend"

    target_label: int
    pattern: Float32[np.ndarray, "c h w"]
    alpha: float = 0.2
    alpha_train: float | None = None

    def __post_init__(self) -> None:
        for name in ("alpha", "alpha_train"):
            share = getattr(self, name)
            if share is not None and not 0 < share <= 1:
                raise ValueError(f"{name}: expected a share in (0, 1], got {share}")
        if self.pattern.size and not (self.pattern.min() >= 0 and self.pattern.max() <= 1):
            raise ValueError(f"pattern: expected values in [0, 1], got up to {np.abs(self.pattern).max()}")

    @classmethod
    def fit(
        cls,
        material: Material,
        *,
        generator: np.random.Generator,
        target_label: int = 0,
        alpha: float = 0.2,
        alpha_train: float | None = None,
    ) -> Blend:
        """Return the attack with a pattern of uniform noise, drawn for images of the material's shape."""
        pattern = generator.random(material.images.shape[1:], np.float32)
        return cls(target_label, pattern, alpha, alpha_train)

    def stamp(self, images: Images) -> Images:
        """Return copies of the images, float32 NCHW in [0, 1], with the pattern over each."""
        return self._blend(images, self.alpha)

    def imprint(self, images: Images) -> Images:
        """Return copies of the images with the pattern as strong as in training."""
        return self._blend(images, self.alpha if self.alpha_train is None else self.alpha_train)

    def _blend(self, images: Images, alpha: float) -> Images:
        if images.shape[1:] != self.pattern.shape:
            raise ValueError(
                f"images: expected the pattern's shape {self.pattern.shape}, got {images.shape[1:]}"
            )
        share = np.float32(alpha)
        blended: Images = np.clip(share * self.pattern + (np.float32(1) - share) * images, 0, 1)
        return blended
