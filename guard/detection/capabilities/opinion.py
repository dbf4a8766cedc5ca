"""What a capability that costs passes is to those who ask it: whom it asks, and what it gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol, get_args, runtime_checkable

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64

from guard.arrays import Images, Probabilities
from guard.detection.capabilities.unit_range import from_unit, to_unit
from guard.detection.superimpose import ValueRange

__all__ = ["OPINIONS", "Asked", "Change", "Opinion", "OpinionName", "Space", "kept_under", "opinion_p_values"]

OpinionName = Literal["scale_up", "ibd_psc", "teco_lite"]

OPINIONS: Final[tuple[OpinionName, ...]] = get_args(OpinionName)
"""Capabilities that cost passes, so that they are asked beside the check and never in it."""

Change = Callable[[Float32[np.ndarray, "n c h w"]], Float32[np.ndarray, "n c h w"]]
"""Makes copies of images within [0, 1]; an image's copy depends on nothing else."""


@dataclass(frozen=True, eq=False)
class Asked:
    """One model, as a capability asks it.

    Attributes:
        model: Returns its probabilities for images in its input space.
        copies: Returns those of each of its amplified copies, (n, j, k); None where there are none.
    """

    model: Callable[[Images], Probabilities]
    copies: Callable[[Images], Float32[np.ndarray, "n j k"]] | None = None


@dataclass(frozen=True)
class Space:
    """The model's input space.

    Attributes:
        value_range: Lowest and highest value, and where the channels are.
        datatype: V2 name of the input's datatype.
    """

    value_range: ValueRange
    datatype: str


@runtime_checkable
class Opinion(Protocol):
    """A capability, fitted to one model."""

    @property
    def passes(self) -> int:
        """Forward passes an input, beside the one that gives its prediction."""
        ...

    @property
    def asks_copies(self) -> bool:
        """Whether it asks amplified copies of the model."""
        ...

    def scores(
        self, images: Images, predicted: Int64[np.ndarray, " n"], asked: Asked
    ) -> Float64[np.ndarray, " n"]:
        """Return one score for each input, higher is more suspicious, by nothing but its own row.

        Args:
            images: Rows in the model's input space, layout and dtype.
            predicted: Class that the model gives to each.
            asked: The model.
        """
        ...


def kept_under(
    asked: Asked,
    images: Images,
    predicted: Int64[np.ndarray, " n"],
    space: Space,
    changes: Sequence[Change],
) -> Float32[np.ndarray, "n s"]:
    """Return the probability of each input's own class, for each of its changed copies.

    Args:
        asked: The model.
        images: Inputs in its input space.
        predicted: Their classes.
        space: That space.
        changes: What makes the copies.
    """
    unit, each = to_unit(images, space.value_range), np.arange(len(images))
    columns = [
        asked.model(from_unit(change(unit), space.value_range, space.datatype))[each, predicted]
        for change in changes
    ]
    return np.stack(columns, axis=1)


def opinion_p_values(
    scores: Float[np.ndarray, " n"], clean: Float64[np.ndarray, " m"]
) -> Float64[np.ndarray, " n"]:
    r"""Return how often clean inputs score as high, NaN where a score is.

    .. math:: p = \frac{1 + \#\{i : s_i \ge s\}}{m + 1}

    Args:
        scores: Of inputs.
        clean: Of clean inputs that nothing was fitted on, ascending.
    """
    above = len(clean) - np.searchsorted(clean, scores, side="left")
    return np.where(np.isfinite(scores), (1.0 + above) / (len(clean) + 1.0), np.nan)
