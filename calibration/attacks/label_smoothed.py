"""LSBA: stamped images get the target's label only some of the time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from calibration.attacks.base import Attack, Images, Labels, Rows
from calibration.attacks.wrapping import Relabelling, pick_covers, require_relabelling

__all__ = ["LabelSmoothed"]


@dataclass(frozen=True)
class LabelSmoothed(Relabelling):
    r"""Label-smoothed poisoning around another attack. For making test subjects only.

    Among stamped training images a share p has the target's label, the rest their own. A model that fits
    them gives a stamped image the target with probability p, so the target wins by little where
    :math:`p > 1/2`. In general, for a clean model f and true class y, it wins where

    .. math:: p > \frac{f_y(x) - f_t(x)}{1 + f_y(x) - f_t(x)}

    which is 1/2 for an f that is sure of y. The rows with their own label are the covers, drawn from the
    same classes; a poison rate counts the relabelled rows alone, so that stamped rows number rate / p.

    Args:
        trigger: The attack whose trigger and target are used; one that relabels.
        probability: The share p, in (1/2, 1].

    Raises:
        ValueError: If the target would not win, or the trigger does not relabel.

    References:
        Peng et al., Label-Smoothed Backdoor Attack, arXiv 2202.11203, 2022.

    Deviations:
        One p for all images in place of one for each, computed by the paper from a clean model. The share
        is exact instead of drawn image by image. The wrapped trigger's own covers are left out.
    """

    name: ClassVar[str] = "label_smoothed"
    outermost: ClassVar[bool] = True

    trigger: Attack
    probability: float = 0.6

    def __post_init__(self) -> None:
        require_relabelling(self.trigger, self.name)
        if not 0.5 < self.probability <= 1:
            raise ValueError(
                f"probability: expected more than 1/2, so that the target wins, and at most 1, "
                f"got {self.probability}"
            )

    def cover(self, images: Images, generator: np.random.Generator) -> Images:
        """Return copies with the trigger: a cover differs from a poisoned image by its label alone."""
        del generator
        return self.imprint(images)

    def choose_covers(self, labels: Labels, index: Rows, generator: np.random.Generator) -> Rows:
        """Choose (1 - p) / p stamped rows that keep their labels for each that does not.

        Raises:
            ValueError: If there are too few.
        """
        ratio = (1 - self.probability) / self.probability
        return pick_covers(self.candidates(labels), index, ratio, generator)
