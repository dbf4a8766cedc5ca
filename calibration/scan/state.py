"""How far inversions have come, as arrays that can be kept, sent, parted and joined."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from calibration.scan.base import Arrays

__all__ = ["State"]


@dataclass(frozen=True, eq=False)
class State:
    """How far a number of inversions have come; a row for each aim.

    Attributes:
        parts: The form's parameters.
        best: The parameters of the smallest trigger that worked.
        first: Adam's first averages.
        second: Adam's second averages.
        steps: Steps done.
        weight: Of the size.
        success: Smoothed success rate.
        size: The best's size; the present one's where none worked yet.
        won: Whether any trigger worked.
        loss: Smoothed cross-entropy.
        since: Steps since the best became smaller.
        rose: Whether the weight was raised once.
        fell: Whether it was lowered after that.
    """

    parts: tuple[Tensor, ...]
    best: tuple[Tensor, ...]
    first: tuple[Tensor, ...]
    second: tuple[Tensor, ...]
    steps: Int64[Tensor, " t"]
    weight: Float32[Tensor, " t"]
    success: Float32[Tensor, " t"]
    size: Float32[Tensor, " t"]
    won: Bool[Tensor, " t"]
    loss: Float32[Tensor, " t"]
    since: Int64[Tensor, " t"]
    rose: Bool[Tensor, " t"]
    fell: Bool[Tensor, " t"]

    _TUPLES: ClassVar = ("parts", "best", "first", "second")
    _ROWS: ClassVar = ("steps", "weight", "success", "size", "won", "loss", "since", "rose", "fell")

    def __len__(self) -> int:
        return len(self.steps)

    def as_arrays(self) -> dict[str, np.ndarray]:
        """Return it as named arrays."""
        arrays = {name: getattr(self, name).numpy() for name in self._ROWS}
        for name in self._TUPLES:
            arrays |= {f"{name}.{place}": part.numpy() for place, part in enumerate(getattr(self, name))}
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> State:
        """Return what :meth:`as_arrays` made arrays of."""
        rows: dict[str, Any] = {name: torch.from_numpy(np.array(arrays[name])) for name in cls._ROWS}
        count = sum(name.startswith("parts.") for name in arrays)
        tuples: dict[str, Any] = {
            name: tuple(torch.from_numpy(np.array(arrays[f"{name}.{place}"])) for place in range(count))
            for name in cls._TUPLES
        }
        return cls(**tuples, **rows)

    def rows(self, index: Sequence[int]) -> State:
        """Return the state of some aims alone."""
        chosen = torch.tensor(list(index), dtype=torch.int64)
        rows: dict[str, Any] = {name: getattr(self, name)[chosen] for name in self._ROWS}
        tuples: dict[str, Any] = {
            name: tuple(part[chosen] for part in getattr(self, name)) for name in self._TUPLES
        }
        return State(**tuples, **rows)

    @classmethod
    def join(cls, states: Sequence[State]) -> State:
        """Return several states as one, their rows in order."""
        rows: dict[str, Any] = {
            name: torch.cat([getattr(state, name) for state in states]) for name in cls._ROWS
        }
        tuples: dict[str, Any] = {
            name: tuple(
                torch.cat(parts) for parts in zip(*(getattr(state, name) for state in states), strict=True)
            )
            for name in cls._TUPLES
        }
        return cls(**tuples, **rows)

    def put(self, index: Sequence[int], other: State) -> State:
        """Return the state with some of its rows replaced by another's."""
        places = torch.tensor(list(index), dtype=torch.int64)
        rows: dict[str, Any] = {
            name: getattr(self, name).index_copy(0, places, getattr(other, name)) for name in self._ROWS
        }
        tuples: dict[str, Any] = {
            name: tuple(
                old.index_copy(0, places, new)
                for old, new in zip(getattr(self, name), getattr(other, name), strict=True)
            )
            for name in self._TUPLES
        }
        return State(**tuples, **rows)

    def digest(self) -> str:
        """Return a digest of all of it."""
        digest = hashlib.sha256()
        for name, array in sorted(self.as_arrays().items()):
            digest.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
        return digest.hexdigest()
