"""Refool: a reflection of another scene on the picture, as of a window in front of it."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float32
from scipy.ndimage import gaussian_filter

from calibration.attacks.base import CleanLabelled, Images, Material, RateOf

__all__ = ["GAMMA", "Refool", "blurred_reflection", "ghost_reflection", "window"]

GAMMA = 2.2
"""Between pixel values and linear light, where reflections add up."""

Light = Float32[np.ndarray, "c h w"]


@dataclass(frozen=True, eq=False)
class Refool(CleanLabelled):
    r"""Reflections as triggers, on images of the target class by default. For making test subjects only.

    In linear light, :math:`t = x^{2.2}` and :math:`r = R^{2.2}` for a reflected image R, one of two:

    .. math:: T_{ghost}(x)^{2.2} = \alpha t + (1 - \alpha)(a\,r + (1 - a)\,\mathrm{shift}_\delta(r))
    .. math:: T_{blur}(x)^{2.2} = \alpha t + (1 - \alpha/2)\,g \odot \rho(G_\sigma * r)

    clipped to [0, 1], with g the :func:`window` of a spot light and :math:`\rho` taking off what would burn
    out (:func:`blurred_reflection`). Which reflection, which of the two and their parameters are drawn for
    each image from a seed made of its 8-bit pixels, so that an image is stamped alike each time.

    Args:
        target_label: The class that a stamped image is to be given.
        reflections: Images to reflect, float32 CHW in [0, 1], of the images' shape.
        ghost_share: How often a reflection is a ghost; else it is blurred.
        alpha: The range of the share of light that the picture keeps.
        ghost_weight: The range of a, the share of the first of a ghost's two copies, or of the second.
        ghost_offset: The range of the ghost's shift, in pixels, both ends included.
        sigma: The range of the blur's standard deviation, in pixels.
        clean_label: Poison images of the target class and leave labels; else relabel other classes.
        rate_of: What a poison rate is a share of, if labels are left.

    Raises:
        ValueError: If there are no reflections, they or a share or range leave [0, 1], or a length is
            negative.

    References:
        Liu et al., Reflection Backdoor: A Natural Backdoor Attack on Deep Neural Networks, ECCV 2020,
        arXiv 2007.02343. ARGD's runs have a ghost share of 0.39 and alpha of 1 - U(0.05, 0.45).

    Deviations:
        Lengths are in pixels of the image itself. The authors' code enlarges to 560 pixels, works there and
        shrinks, so that on 32 pixels its blur (sigma 1 to 5) and shift (3 to 8) are below half a pixel;
        ours are visible. A ghost's margin is black instead of cropped and stretched. Reflections are
        chosen evenly: the paper's search for effective ones trains a model for each of 16 rounds. Its third
        kind, a plain blend, is the ghost with no offset.
    """

    name: ClassVar[str] = "refool"

    target_label: int
    reflections: Float32[np.ndarray, "m c h w"]
    ghost_share: float = 0.39
    alpha: tuple[float, float] = (0.55, 0.95)
    ghost_weight: tuple[float, float] = (0.15, 0.5)
    ghost_offset: tuple[int, int] = (1, 3)
    sigma: tuple[float, float] = (0.5, 1.5)
    clean_label: bool = True
    rate_of: RateOf = "target class"

    def __post_init__(self) -> None:
        if not len(self.reflections):
            raise ValueError("reflections: expected at least one image to reflect, got none")
        if not (self.reflections.min() >= 0 and self.reflections.max() <= 1):
            raise ValueError(f"reflections: expected values in [0, 1], got up to {self.reflections.max()}")
        for name, most in (("alpha", 1), ("ghost_weight", 1), ("ghost_offset", np.inf), ("sigma", np.inf)):
            low, high = getattr(self, name)
            if not 0 <= low <= high <= most:
                raise ValueError(f"{name}: expected a range within [0, {most}], got {low} to {high}")
        if not 0 <= self.ghost_share <= 1:
            raise ValueError(f"ghost_share: expected a share in [0, 1], got {self.ghost_share}")

    @classmethod
    def fit(
        cls,
        material: Material,
        *,
        generator: np.random.Generator,
        target_label: int = 0,
        count: int = 200,
        clean_label: bool = True,
        rate_of: RateOf = "target class",
    ) -> Refool:
        """Return the attack with up to ``count`` of the material's other images as reflections."""
        if material.others is None:
            raise ValueError("others: refool needs images to reflect, got none")
        rows = generator.permutation(len(material.others))[:count]
        return cls(target_label, material.others[rows], clean_label=clean_label, rate_of=rate_of)

    @property
    def changes_labels(self) -> bool:
        """Whether images of other classes are relabelled."""
        return not self.clean_label

    def rate_base(self, labels: np.ndarray) -> int:
        """Return the size of the target class, or of the training set."""
        return super().rate_base(labels) if self.clean_label else len(labels)

    def stamp(self, images: Images) -> Images:
        """Return copies of the images, float32 NCHW in [0, 1], each with its reflection."""
        if images.shape[1:] != self.reflections.shape[1:]:
            expected = self.reflections.shape[1:]
            raise ValueError(f"images: expected the reflections' shape {expected}, got {images.shape[1:]}")
        stamped = images.copy()
        for image in stamped:
            image[:] = self._reflect(image)
        return stamped

    def _reflect(self, image: Light) -> Light:
        seed = zlib.crc32(np.rint(image * 255).astype(np.uint8).tobytes())
        generator = np.random.default_rng(seed)
        reflection = self.reflections[generator.integers(len(self.reflections))] ** GAMMA
        alpha = generator.uniform(*self.alpha)
        picture = image**GAMMA
        if generator.random() < self.ghost_share:
            weight = abs(generator.integers(2) - generator.uniform(*self.ghost_weight))
            down, right = generator.integers(self.ghost_offset[0], self.ghost_offset[1], 2, endpoint=True)
            light = (1 - alpha) * ghost_reflection(reflection, float(weight), int(down), int(right))
        else:
            attenuation = generator.uniform(1.08, 1.18)
            blurred = blurred_reflection(picture, reflection, generator.uniform(*self.sigma), attenuation)
            light = (1 - alpha / 2) * window(*image.shape[1:]) * blurred
        mixed: Light = np.clip(alpha * picture + light, 0, 1).astype(np.float32) ** np.float32(1 / GAMMA)
        return mixed


def ghost_reflection(light: Light, weight: float, down: int, right: int) -> Light:
    """Return two copies of the light, the second moved ``down`` and ``right``, with weights adding to 1."""
    height, width = light.shape[1:]
    moved = np.zeros_like(light)
    moved[:, down:, right:] = light[:, : height - down, : width - right]
    mixed: Light = (weight * light + (1 - weight) * moved).astype(np.float32)
    return mixed


def blurred_reflection(picture: Light, light: Light, sigma: float, attenuation: float) -> Light:
    r"""Return the light blurred, and dimmed where picture and reflection together would burn out.

    In each channel the blurred light loses ``attenuation`` times what the mean of the sums above 1 is
    above 1, and is clipped to [0, 1].
    """
    blurred = gaussian_filter(light, (0, sigma, sigma), mode="reflect")
    both = blurred + picture
    burnt = both > 1
    mean = (both * burnt).sum((1, 2)) / (burnt.sum((1, 2)) + 1e-6)
    excess = attenuation * (np.maximum(mean, 1) - 1)
    dimmed: Light = np.clip(blurred - excess[:, None, None], 0, 1).astype(np.float32)
    return dimmed


def window(height: int, width: int) -> Float32[np.ndarray, "h w"]:
    r"""Return a spot light: :math:`\exp(-(z_y^2 + z_x^2) / 4)` with z from -3 to 3 across the image."""
    rows, columns = (np.exp(-(np.linspace(-3, 3, size) ** 2) / 4) for size in (height, width))
    spot: Float32[np.ndarray, "h w"] = np.outer(rows, columns).astype(np.float32)
    return spot
