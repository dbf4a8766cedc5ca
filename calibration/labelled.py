"""Images and their classes, as scans and repairs take them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float32, Int64

__all__ = ["Labelled"]


@dataclass(frozen=True, eq=False)
class Labelled:
    """Images as the model takes them, and their classes.

    Attributes:
        images: Preprocessed, channels first.
        labels: Class of each; the model's own prediction where none was given.
    """

    images: Float32[torch.Tensor, "n c h w"]
    labels: Int64[torch.Tensor, " n"]

    def __post_init__(self) -> None:
        if len(self.images) != len(self.labels):
            raise ValueError(
                f"labels: expected one for each of {len(self.images)} images, got {len(self.labels)}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: torch.Tensor) -> Labelled:
        """Return some of the rows, by their numbers or by a mask."""
        return Labelled(self.images[rows], self.labels[rows])

    def to(self, device: torch.device) -> Labelled:
        """Return them on a device."""
        return Labelled(self.images.to(device), self.labels.to(device))
