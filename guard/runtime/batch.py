"""One device call of the waiting line: images of any tasks and the pairs to run of each."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Int64

from guard.arrays import Images, PairIndex
from guard.runtime.check_task import CheckTask, Row

__all__ = ["Batch", "Unit"]


@dataclass(slots=True, eq=False)
class Unit:
    """One round of one row: where it sits in the batch; not frozen, as that takes twice as long to make."""

    task: CheckTask
    index: int
    overlays: range
    with_image: bool

    @property
    def row(self) -> Row:
        """The row that it is a round of."""
        return self.task.rows[self.index]

    @property
    def pairs(self) -> int:
        """Pairs of it."""
        return len(self.overlays) + self.with_image


@dataclass(frozen=True, eq=False)
class Batch:
    """One device call: images of any tasks and a ragged list of pairs over them.

    The arrays are made when they are first asked for, so that the line is not locked meanwhile.

    Attributes:
        units: At least one.
    """

    units: tuple[Unit, ...]

    @cached_property
    def images(self) -> Images:
        """Image of each unit."""
        return np.concatenate([unit.task.images[unit.index : unit.index + 1] for unit in self.units])

    @cached_property
    def image_index(self) -> PairIndex:
        """Image of each pair."""
        return np.repeat(np.arange(len(self.units), dtype=np.int64), self._counts)

    @cached_property
    def overlay_index(self) -> PairIndex:
        """Overlay of each pair; -1 for the image itself."""
        overlays: list[int] = []
        for unit in self.units:
            if unit.with_image:
                overlays.append(-1)
            overlays.extend(unit.overlays)
        return np.array(overlays, np.int64)

    @cached_property
    def firsts(self) -> Int64[np.ndarray, " u"]:
        """Place of each unit's first pair."""
        firsts: np.ndarray = np.cumsum(self._counts) - self._counts
        return firsts

    @cached_property
    def _counts(self) -> Int64[np.ndarray, " u"]:
        return np.array([unit.pairs for unit in self.units], np.int64)

    @property
    def tasks(self) -> list[CheckTask]:
        """The tasks in the batch, in their turn, each once."""
        return list(dict.fromkeys(unit.task for unit in self.units))

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
