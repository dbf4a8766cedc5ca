"""Rejected and flagged inputs, kept on disk within bounds, as evidence of a trigger."""

from guard.quarantine.export import export_items
from guard.quarantine.item import ItemRecord
from guard.quarantine.keeper import Quarantine, QuarantineCounts
from guard.quarantine.reading import Contents, find_item, read_contents, read_image
from guard.quarantine.shelf import Bounds

__all__ = [
    "Bounds",
    "Contents",
    "ItemRecord",
    "Quarantine",
    "QuarantineCounts",
    "export_items",
    "find_item",
    "read_contents",
    "read_image",
]
