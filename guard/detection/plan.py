"""Which overlays are tried in which round.

Rounds start small, so that a clearly clean input costs little, and grow, so that device
batches stay full: 4, 4, 8, 16, 32 … until all N overlays are used. STRIP's verdict does not
depend on the rounds (see :mod:`guard.detection.strip`), only its cost does. The fused detector
accepts at the ends of some of them (:mod:`guard.detection.fused`), so there its detections do too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

__all__ = ["CheckPlan", "default_rounds"]


@dataclass(frozen=True)
class CheckPlan:
    """Round sizes over a fixed, ordered list of overlays.

    Attributes:
        rounds: Number of overlays in each round; all positive.

    Raises:
        ValueError: If there is no round or one is not positive.
    """

    rounds: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.rounds or min(self.rounds) < 1:
            raise ValueError(f"rounds must be positive and at least one, got {self.rounds}")

    @cached_property
    def n_overlays(self) -> int:
        """N, the number of blends of an input that is never accepted early."""
        return sum(self.rounds)

    def next_round(self, passes: int) -> range:
        """Return the overlay indices of the round that follows after ``passes`` blends.

        Raises:
            ValueError: If ``passes`` is not the end of a round, or all rounds are done.
        """
        found = self._by_start.get(passes)
        if found is None:
            raise ValueError(
                f"no round starts after {passes} passes; rounds start at {tuple(self._by_start)}"
            )
        return found

    @cached_property
    def _by_start(self) -> Mapping[int, range]:
        bounds = (0, *accumulate(self.rounds))
        return {start: range(start, stop) for start, stop in pairwise(bounds)}


def default_rounds(n_overlays: int) -> tuple[int, ...]:
    """Return the round sizes 4, 4, 8, 16, … that add up to ``n_overlays``.

    Examples:
        >>> default_rounds(32)
        (4, 4, 8, 16)
        >>> default_rounds(100)
        (4, 4, 8, 16, 32, 36)
    """
    if n_overlays < 1:
        raise ValueError(f"n_overlays must be at least 1, got {n_overlays}")
    rounds: list[int] = []
    while sum(rounds) < n_overlays:
        rounds.append(min(max(4, sum(rounds)), n_overlays - sum(rounds)))
    return tuple(rounds)
