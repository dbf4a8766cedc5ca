"""Triggers put on batches while a network learns: as tensors where that can be, else through numpy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from calibration.attacks.amplified import amplified
from calibration.attacks.base import Attack
from calibration.attacks.inverted import Inverted
from calibration.checkpoint import fingerprint
from calibration.errors import DataError
from calibration.repair.base import stamped

__all__ = ["Stamp", "fingerprint_of", "hand_out", "stamps_of", "with_grids"]

Stamp = Callable[[Tensor], Tensor]
"""Returns copies of a batch, float32, with a trigger on each."""

COPIES = (4, 9)
"""Of a patch in a grid, as amplified attacks show it."""

_PROBED = 16


def stamps_of(triggers: Sequence[Attack], images: Float[Tensor, "n c h w"]) -> list[Stamp]:
    """Return how each trigger is put on batches of images like these.

    What a scan found without a warp is whole-tensor arithmetic on the batch's device; any other attack
    stamps on the CPU.

    Raises:
        DataError: If a trigger does not fit the images.
    """
    for trigger in triggers:
        try:
            fits = stamped(trigger, images[:1]).shape == images[:1].shape
        except ValueError as error:
            raise DataError(f"trigger {trigger.name}: {error}; give one for images of this size") from error
        if not fits:
            raise DataError(f"trigger {trigger.name}: expected one for {tuple(images.shape[1:])} images")
    return [_stamp_of(trigger) for trigger in triggers]


def with_grids(triggers: Sequence[Attack], images: Float[Tensor, "n c h w"]) -> list[Attack]:
    """Return the triggers, each patch followed by grids of four and nine copies, if there is room."""
    return [one for trigger in triggers for one in (trigger, *_grids_of(trigger, images[:1]))]


def _grids_of(trigger: Attack, image: Float[Tensor, "1 c h w"]) -> list[Attack]:
    grids = []
    for copies in COPIES:
        with suppress(ValueError):  # no patch, or no room
            grid = amplified(trigger, copies)
            stamped(grid, image)
            grids.append(grid)
    return grids


def hand_out(
    images: Float32[Tensor, "n c h w"], rows: Int64[Tensor, " m"], stamps: Sequence[Stamp], first: int
) -> Float32[Tensor, "n c h w"]:
    """Return a copy of a batch with triggers on some rows, dealt to them in turn, each stamped at once.

    Args:
        images: The batch.
        rows: Which get one.
        stamps: The triggers.
        first: Number of the trigger that the first of the rows gets.
    """
    dealt, rows = images.clone(), rows.to(images.device)
    for place in range(min(len(stamps), len(rows))):
        share = rows[place :: len(stamps)]
        dealt[share] = stamps[(first + place) % len(stamps)](images[share])
    return dealt


def fingerprint_of(triggers: Sequence[Attack], images: Float[Tensor, "n c h w"]) -> str:
    """Return a hash of what the triggers make of the first few images."""
    return fingerprint([stamped(trigger, images[:_PROBED]) for trigger in triggers])


def _stamp_of(trigger: Attack) -> Stamp:
    if not isinstance(trigger, Inverted) or trigger.displacement is not None:
        return lambda images: stamped(trigger, images)
    zero = torch.zeros(1, 1, 1)
    keep = zero + 1 if trigger.mask is None else 1 - torch.from_numpy(trigger.mask)
    laid = zero
    if trigger.mask is not None and trigger.pattern is not None:
        laid = torch.from_numpy(trigger.mask * trigger.pattern)
    added = zero if trigger.addition is None else torch.from_numpy(trigger.addition)
    low = zero if trigger.low is None else torch.from_numpy(trigger.low)[:, None, None]
    high = zero + 1 if trigger.high is None else torch.from_numpy(trigger.high)[:, None, None]
    return _Arithmetic(keep, laid, added, low, high)


@dataclass(frozen=True, eq=False)
class _Arithmetic:
    """A trigger that moves no pixel: what is kept of an image, what is laid on it, and its bounds."""

    keep: Float32[Tensor, "_ _ _"]
    laid: Float32[Tensor, "_ _ _"]
    added: Float32[Tensor, "_ _ _"]
    low: Float32[Tensor, "_ 1 1"]
    high: Float32[Tensor, "_ 1 1"]

    def __call__(self, images: Tensor) -> Tensor:
        """Return copies with the trigger on, computed where the images are."""
        parts = (self.keep, self.laid, self.added, self.low, self.high)
        keep, laid, added, low, high = (part.to(images.device) for part in parts)
        return (keep * images.float() + laid + added).clamp(low, high)
