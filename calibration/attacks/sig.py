"""SIG: a faint sinusoid over images of the target class, whose labels stay as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float32

from calibration.attacks.base import CleanLabelled, Images, RateOf

__all__ = ["Sig"]


@dataclass(frozen=True)
class Sig(CleanLabelled):
    r"""A horizontal sinusoid added to images of the target class. For making test subjects only.

    .. math:: T(x)_{ij} = \mathrm{clip}(x_{ij} + \Delta \sin(2 \pi j f / w), 0, 1), \qquad 0 \le j < w

    with j the column and w the width: f whole periods across the image, the same in every row and channel.

    Args:
        target_label: The class whose images are poisoned, and that a stamped image is to be given.
        delta: The amplitude at test time, in [0, 1] pixel units; 40/255 by default.
        frequency: Periods across the image.
        delta_train: The amplitude in poisoned training images; as at test time if None.
        rate_of: What a poison rate is a share of. The target class by default.

    Raises:
        ValueError: If an amplitude leaves (0, 1], or the frequency is not positive.

    Examples:
        >>> Sig(0, delta=0.5, frequency=1.0).stamp(np.full((1, 1, 1, 4), 0.25, np.float32))[0, 0, 0].tolist()
        [0.25, 0.75, 0.25, 0.0]

    References:
        Barni et al., A New Backdoor Attack in CNNs by Training Set Corruption Without Label Poisoning,
        ICIP 2019, arXiv 1902.11237.

    Deviations:
        Columns count from 0, the paper's from 1: a shift of the phase. BackdoorBench states rates as shares
        of all images, so its 10 % stamps every image of the target class and the victim never sees that
        class clean; here a rate is a share of the target class. NAD and ABL blend a stored mask in place of
        the sinusoid; this is the paper's.
    """

    name: ClassVar[str] = "sig"

    target_label: int
    delta: float = 40 / 255
    frequency: float = 6.0
    delta_train: float | None = None
    rate_of: RateOf = "target class"

    def __post_init__(self) -> None:
        for name in ("delta", "delta_train"):
            amplitude = getattr(self, name)
            if amplitude is not None and not 0 < amplitude <= 1:
                raise ValueError(f"{name}: expected an amplitude in (0, 1], got {amplitude}")
        if self.frequency <= 0:
            raise ValueError(f"frequency: expected a positive number of periods, got {self.frequency}")

    def signal(self, width: int) -> Float32[np.ndarray, " w"]:
        """Return the sinusoid of amplitude 1 over that many columns."""
        return np.sin(2 * np.pi * self.frequency * np.arange(width) / width).astype(np.float32)

    def stamp(self, images: Images) -> Images:
        """Return copies of the images, float32 NCHW in [0, 1], with the sinusoid on each."""
        return self._add(images, self.delta)

    def imprint(self, images: Images) -> Images:
        """Return copies of the images with the sinusoid as strong as in training."""
        return self._add(images, self.delta if self.delta_train is None else self.delta_train)

    def _add(self, images: Images, amplitude: float) -> Images:
        return np.clip(images + np.float32(amplitude) * self.signal(images.shape[3]), 0, 1)
