"""Between the values that a model takes and the range from 0 to 1 that attacks are made for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from calibration.attacks.base import Attack, Images
from calibration.attacks.inverted import Inverted

__all__ = ["Values"]


@dataclass(frozen=True, eq=False)
class Values:
    """The values of a model's images.

    Attributes:
        low: Smallest of each channel.
        high: Largest of each channel.
    """

    low: Float32[np.ndarray, " c"]
    high: Float32[np.ndarray, " c"]

    def stamp(self, attack: Attack, rows: Images) -> Images:
        """Return copies of images in the model's values with a trigger on each.

        What a scan inverted is in those values already.

        Raises:
            ValueError: If the trigger does not fit the images.
        """
        if isinstance(attack, Inverted):
            return attack.stamp(rows)
        low, span = self.low[:, None, None], (self.high - self.low)[:, None, None]
        unit = np.clip((rows - low) / span, 0, 1).astype(np.float32)
        stamped: Images = (attack.stamp(unit) * span + low).astype(np.float32)
        return stamped
