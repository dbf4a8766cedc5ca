"""Which unit a free worker gets next, and how often one may be lost; pure, so any cluster can use it."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from calibration.errors import ClusterError
from calibration.scan.base import Unit

__all__ = ["Handout"]


class Handout:
    """Units waiting for workers: the heaviest first, so that none of them is left for the end by itself.

    Args:
        units: What is to be done.
        tries: How often a unit is begun before its loss is an error; at least 1.
    """

    def __init__(self, units: Sequence[Unit], tries: int) -> None:
        self._units = units
        self._tries = tries
        self._begun = [0] * len(units)
        self._waiting = [(-unit.weight, place) for place, unit in enumerate(units)]
        heapq.heapify(self._waiting)

    def __len__(self) -> int:
        """Units that no worker has."""
        return len(self._waiting)

    def take(self) -> int:
        """Return the place of the heaviest unit that waits; of several, the first; a worker has it now.

        Raises:
            IndexError: If none waits.
        """
        _, place = heapq.heappop(self._waiting)
        self._begun[place] += 1
        return place

    def lose(self, place: int, reason: str) -> None:
        """Let a unit wait again whose worker was lost.

        Raises:
            ClusterError: If it has been begun as often as it may be.
        """
        unit, begun = self._units[place], self._begun[place]
        if begun >= self._tries:
            raise ClusterError(
                f"unit {unit.key}: expected a worker to finish it, got {begun} lost in a row, the last: "
                f"{reason}; give workers more memory or fewer threads, or run it without a cluster"
            )
        heapq.heappush(self._waiting, (-unit.weight, place))
