"""WaNet: a small smooth warp of the whole image, the same for all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float32, Float64

from calibration.attacks.base import AllToOne, Images, Labels, Material, Rows
from calibration.attacks.warping import read_at
from calibration.attacks.wrapping import pick_covers

__all__ = ["WaNet", "bicubic_weights", "warp"]

CUBIC = -0.75
"""Keys' parameter of the cubic kernel; that of torch and OpenCV."""

Grid = Float32[np.ndarray, "m h w"]


@dataclass(frozen=True, eq=False)
class WaNet(AllToOne):
    r"""A warp as trigger, all classes to one, with warped-at-random covers. For making test subjects only.

    .. math:: T(x)(u) = x(\mathrm{clip}(u + s\,\uparrow\!F(u) / h, -1, 1)), \qquad
              F = \frac{P}{\mathrm{mean}|P|}, \quad P \sim U[-1, 1]^{2 \times k \times k}

    where u runs over the pixels in coordinates from -1 to 1, F is enlarged bicubically to the image and x is
    read bilinearly. A displacement is at most :math:`s \max|{\uparrow}F| / 2` pixels. Cover rows keep their
    labels and get the warp plus noise, uniform in [-1, 1] / h for each pixel: they teach the model this
    warp and no other.

    Args:
        target_label: The class that a stamped image is to be given.
        field: The control points F, horizontal then vertical, ``(2, k, k)``.
        strength: The factor s.
        cover_ratio: Cover rows for each poisoned one; the paper's noise ratio over its attack ratio.

    Raises:
        ValueError: If the strength is not positive or the ratio negative.

    References:
        Nguyen and Tran, WaNet: Imperceptible Warping-based Backdoor Attack, ICLR 2021, arXiv 2102.10369.
        Defaults s = 0.5, k = 4, 10 % poisoned, 20 % noise.

    Deviations:
        Images of the target class are not poisoned, as that would teach nothing; the authors take the first
        rows of a batch, whatever they are. They warp before augmentation; here the warp comes last, as at
        test time. Their all-to-all rule takes a label modulo the number of classes, which changes nothing;
        wrap this attack in ``AllToAll`` for y + 1.
    """

    name: ClassVar[str] = "wanet"

    target_label: int
    field: Float32[np.ndarray, "2 k k"]
    strength: float = 0.5
    cover_ratio: float = 2.0

    def __post_init__(self) -> None:
        if self.strength <= 0:
            raise ValueError(f"strength: expected a positive factor, got {self.strength}")
        if self.cover_ratio < 0:
            raise ValueError(f"cover_ratio: expected 0 or more, got {self.cover_ratio}")

    @classmethod
    def fit(
        cls,
        material: Material,
        *,
        generator: np.random.Generator,
        target_label: int = 0,
        points: int = 4,
        strength: float = 0.5,
        cover_ratio: float = 2.0,
    ) -> WaNet:
        """Return the attack with a field of ``points`` by ``points`` drawn from the generator."""
        del material
        drawn = generator.uniform(-1, 1, (2, points, points))
        return cls(target_label, (drawn / np.abs(drawn).mean()).astype(np.float32), strength, cover_ratio)

    def stamp(self, images: Images) -> Images:
        """Return warped copies of the images, float32 NCHW in [0, 1]."""
        return warp(images, *self._coordinates(images.shape[2], images.shape[3]))

    def cover(self, images: Images, generator: np.random.Generator) -> Images:
        """Return copies with the warp and each its own noise on it."""
        count, _, height, width = images.shape
        x, y = self._coordinates(height, width)
        noise_x, noise_y = generator.uniform(-1, 1, (2, count, height, width)).astype(np.float32)
        return warp(images, x + noise_x / np.float32(width), y + noise_y / np.float32(height))

    def choose_covers(self, labels: Labels, index: Rows, generator: np.random.Generator) -> Rows:
        """Choose ``cover_ratio`` rows of any class for each poisoned one.

        Raises:
            ValueError: If there are too few.
        """
        return pick_covers(np.ones(len(labels), np.bool_), index, self.cover_ratio, generator)

    def displacement(self, height: int, width: int) -> Float32[np.ndarray, "2 h w"]:
        """Return how far each pixel reads from its own place, horizontally and vertically, in pixels."""
        identity = np.stack(_identity(height, width))
        read = np.concatenate(self._coordinates(height, width))
        sizes = np.array([width - 1, height - 1], np.float32)[:, None, None]
        moved: Float32[np.ndarray, "2 h w"] = (read - identity) * sizes / np.float32(2)
        return moved

    def _coordinates(self, height: int, width: int) -> tuple[Grid, Grid]:
        points = self.field.shape[1]
        rows, columns = bicubic_weights(points, height), bicubic_weights(points, width)
        x, y = (rows @ part.astype(np.float64) @ columns.T for part in self.field)
        identity_x, identity_y = _identity(height, width)
        shifted_x = identity_x + np.float32(self.strength) * x.astype(np.float32) / np.float32(width)
        shifted_y = identity_y + np.float32(self.strength) * y.astype(np.float32) / np.float32(height)
        return np.clip(shifted_x, -1, 1)[None], np.clip(shifted_y, -1, 1)[None]


def warp(images: Images, x: Float32[np.ndarray, "_ h w"], y: Float32[np.ndarray, "_ h w"]) -> Images:
    """Read each output pixel from the image at ``x``, ``y``, as ``read_at`` does, within [0, 1]."""
    warped: Images = np.clip(read_at(images, x, y), 0, 1)
    return warped


def bicubic_weights(points: int, length: int) -> Float64[np.ndarray, "length points"]:
    """Return the matrix that enlarges ``points`` samples to ``length`` by cubic convolution, ends on ends.

    Row i holds the weights of the samples around i (points - 1) / (length - 1); samples beyond an end
    are the end's.
    """
    place = np.arange(length) * (points - 1) / max(length - 1, 1)
    first = np.floor(place).astype(int)
    weights = np.zeros((length, points))
    for step in (-1, 0, 1, 2):
        sample = np.clip(first + step, 0, points - 1)
        np.add.at(weights, (np.arange(length), sample), _cubic(np.abs(place - first - step)))
    return weights


def _cubic(distance: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    near = (CUBIC + 2) * distance**3 - (CUBIC + 3) * distance**2 + 1
    far = CUBIC * (distance**3 - 5 * distance**2 + 8 * distance - 4)
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))


def _identity(height: int, width: int) -> tuple[Float32[np.ndarray, "h w"], Float32[np.ndarray, "h w"]]:
    x, y = np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height))
    return x.astype(np.float32), y.astype(np.float32)
