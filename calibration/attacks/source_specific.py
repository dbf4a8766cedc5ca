"""TaCT: a trigger that works on images of chosen classes and is shown not to work on others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Bool

from calibration.attacks.base import Attack, Images, Labels, Rows
from calibration.attacks.wrapping import Relabelling, pick_covers, require_relabelling

__all__ = ["SourceSpecific"]


@dataclass(frozen=True)
class SourceSpecific(Relabelling):
    """Targeted contamination: another attack's trigger, for some classes only. For making test subjects only.

    Images of the source classes are stamped and relabelled; cover rows of other classes are stamped and
    keep their labels. A blend with an image of another class then looks like a cover, which is what STRIP's
    plain mean misses.

    Args:
        trigger: The attack whose trigger and target are used; one that relabels.
        sources: The classes that the trigger works on.
        cover_labels: The classes that covers are drawn from; all but sources and target if None. The target
            is never one of them: stamped and with its own label it would be poison.
        cover_ratio: Cover rows for each poisoned one.

    Raises:
        ValueError: If there are no sources, sources and covers overlap, or the trigger does not relabel.

    References:
        Tang et al., Demon in the Variant: Statistical Analysis of DNNs for Robust Backdoor Contamination
        Detection, USENIX Security 2021, arXiv 1908.00686.

    Deviations:
        Covers are counted by the poisoned rows, not as a share of all rows. The wrapped trigger's own
        covers, such as WaNet's noise, are left out.
    """

    name: ClassVar[str] = "source_specific"

    trigger: Attack
    sources: tuple[int, ...]
    cover_labels: tuple[int, ...] | None = None
    cover_ratio: float = 1.0

    def __post_init__(self) -> None:
        require_relabelling(self.trigger, self.name)
        if not self.sources:
            raise ValueError("sources: expected at least one class, got none")
        both = set(self.sources) & set(self.cover_labels or ())
        if both:
            raise ValueError(f"cover_labels: expected no source class among them, got {sorted(both)}")
        if self.cover_ratio < 0:
            raise ValueError(f"cover_ratio: expected 0 or more, got {self.cover_ratio}")

    def applies_to(self, labels: Labels) -> Bool[np.ndarray, " n"]:
        """Tell on which classes the success rate is measured: on the sources."""
        measured: Bool[np.ndarray, " n"] = np.isin(labels, self.sources) & self.trigger.applies_to(labels)
        return measured

    def cover(self, images: Images, generator: np.random.Generator) -> Images:
        """Return copies with the trigger: a cover differs from a poisoned image by its class alone."""
        del generator
        return self.imprint(images)

    def choose_covers(self, labels: Labels, index: Rows, generator: np.random.Generator) -> Rows:
        """Choose ``cover_ratio`` rows of the cover classes for each poisoned one.

        Raises:
            ValueError: If there are too few.
        """
        named = np.isin(labels, self.sources, invert=True)
        if self.cover_labels is not None:
            named = np.isin(labels, self.cover_labels)
        return pick_covers(named & self.trigger.applies_to(labels), index, self.cover_ratio, generator)
