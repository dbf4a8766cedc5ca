"""Which requests are a share of all: the share is exact over time, and nobody can tell which come next."""

from __future__ import annotations

import numpy as np

__all__ = ["Share"]


class Share:
    """Picks a share of the requests.

    The requests are cut into stretches of 1/share each, and a place is drawn in each of them. After n
    requests the number picked is n·share, less than one more or less; and callers who come in turns meet no
    pattern that would always pick the same of them.

    Args:
        share: In [0, 1].
        generator: Draws the places.

    Examples:
        >>> share = Share(0.25, np.random.default_rng(0))
        >>> sum(share.takes() for _ in range(1000))
        250
    """

    def __init__(self, share: float, generator: np.random.Generator) -> None:
        if not 0.0 <= share <= 1.0:
            raise ValueError(f"share: expected a number from 0 to 1, got {share:g}")
        self._share = share
        self._generator = generator
        self._seen = 0
        self._picked = 0
        self._place = self._draw(-1)

    def takes(self) -> bool:
        """Return whether the next request is picked."""
        picked = self._seen == self._place
        self._seen += 1
        if picked:
            self._picked += 1
            self._place = self._draw(self._place)
        return picked

    def _draw(self, last: int) -> int:
        """Return the place in the next stretch; where the stretches share a request, behind the last one."""
        if self._share == 0.0:
            return -1  # nowhere
        place = int((self._picked + self._generator.random()) / self._share)
        return max(place, last + 1)
