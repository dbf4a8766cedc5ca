"""One device call of the waiting line: images of any tasks and the pairs to run of each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from guard.arrays import Images, PairIndex
from guard.runtime.check_task import CheckTask

__all__ = ["Batch", "Unit"]


@dataclass(frozen=True)
class Unit:
    """One round of one row: where it sits in the batch."""

    task: CheckTask
    index: int
    overlays: range
    with_image: bool

    @property
    def pairs(self) -> int:
        """Pairs of it."""
        return len(self.overlays) + self.with_image

    @property
    def logits(self) -> np.ndarray:
        """What the model answered to the image itself, in an earlier round."""
        assert self.task.logits is not None
        logits: np.ndarray = self.task.logits[self.index]
        return logits

    @property
    def overlay_index(self) -> PairIndex:
        """Overlay of each pair; -1 for the image itself."""
        return np.array([*([-1] if self.with_image else []), *self.overlays], np.int64)


@dataclass(frozen=True)
class Batch:
    """One device call: images of any tasks and a ragged list of pairs over them."""

    units: tuple[Unit, ...]
    images: Images
    image_index: PairIndex
    overlay_index: PairIndex

    @property
    def tasks(self) -> list[CheckTask]:
        """The tasks in the batch, in their turn, each once."""
        return list(dict.fromkeys(unit.task for unit in self.units))

    @property
    def firsts(self) -> Int64[np.ndarray, " u"]:
        """Place of each unit's first pair."""
        return np.cumsum([0, *(unit.pairs for unit in self.units[:-1])], dtype=np.int64)

    def check_sizes(self, logits: np.ndarray, entropies: np.ndarray, features: np.ndarray | None) -> None:
        """Refuse results that are not of this batch.

        Raises:
            ValueError: If there are not as many of each as pairs.
        """
        if features is not None and len(features) != len(self.image_index):
            raise ValueError(f"expected features of {len(self.image_index)} pairs, got {len(features)}")
        pairs = len(self.image_index)
        if logits.ndim != 2 or len(logits) != pairs or entropies.shape != (pairs,):
            raise ValueError(
                f"expected a row of output and an entropy for each of {pairs} pairs, got the shapes "
                f"{logits.shape} and {entropies.shape}"
            )
