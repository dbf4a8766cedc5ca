"""What is in the folder, in memory: how much it is, what goes first, and what is there already."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

__all__ = ["Bounds", "Place", "Shelf", "Stored"]


@dataclass(frozen=True)
class Bounds:
    """How much is kept.

    Attributes:
        max_items: Items.
        max_bytes: Bytes of their files.
        max_age_s: Seconds since an item was judged.
    """

    max_items: int
    max_bytes: int
    max_age_s: float


@dataclass(frozen=True, order=True)
class Place:
    """Where an item is; places sort by the time of their items."""

    id: str
    folder: str


@dataclass(frozen=True)
class Stored:
    """What has to be known of an item without reading it again.

    Attributes:
        place: Where it is.
        at: When it was judged, seconds since the epoch.
        sha256: Of its image's file.
        bytes: Of its files.
    """

    place: Place
    at: float
    sha256: str
    bytes: int


class Shelf:
    """The items of a folder, by place, by image, and by age."""

    def __init__(self) -> None:
        self._items: dict[Place, Stored] = {}
        self._images: dict[tuple[str, str], Place] = {}
        self._by_age: list[Place] = []
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._items)

    def get(self, place: Place) -> Stored | None:
        """Return the item at a place, if there is one."""
        return self._items.get(place)

    def same_image(self, folder: str, sha256: str) -> Place | None:
        """Return where an image is kept already, if it is."""
        return self._images.get((folder, sha256))

    def add(self, stored: Stored) -> None:
        """Take in an item."""
        if stored.place not in self._items:
            heapq.heappush(self._by_age, stored.place)
        self.remove(stored.place)
        self._items[stored.place] = stored
        self._images[stored.place.folder, stored.sha256] = stored.place
        self.bytes += stored.bytes

    def remove(self, place: Place) -> None:
        """Forget an item, if it is there."""
        stored = self._items.pop(place, None)
        if stored is None:
            return
        self.bytes -= stored.bytes
        image = (place.folder, stored.sha256)
        if self._images.get(image) == place:
            del self._images[image]

    def surplus(self, bounds: Bounds, now: float) -> Place | None:
        """Return the oldest item, if it has to go.

        Args:
            bounds: To be kept.
            now: Seconds since the epoch.
        """
        while self._by_age and self._by_age[0] not in self._items:
            heapq.heappop(self._by_age)
        if not self._by_age:
            return None
        oldest = self._by_age[0]
        too_much = len(self) > bounds.max_items or self.bytes > bounds.max_bytes
        too_old = now - self._items[oldest].at > bounds.max_age_s
        return oldest if too_much or too_old else None
