"""Images that arrived together, and what is known of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Bool

from guard.arrays import Images
from guard.detection.base import Decision, Evidence

__all__ = ["CheckTask", "Row"]

_NOTHING_SEEN: Final = Evidence()


@dataclass
class Row:
    """What is known of one row.

    Attributes:
        wanted: Whether the row is checked; if not, it only gets its prediction.
        predicted: Whether its logits are there.
        label: Class that the model gives it; -1 for none, and where no detector reads it.
        decision: The detector's decision; stays None where no check was wanted or finished.
    """

    wanted: bool
    predicted: bool = False
    label: int = -1
    evidence: Evidence = _NOTHING_SEEN
    decision: Decision | None = None

    @property
    def done(self) -> bool:
        """Whether nothing is left to run for this row."""
        return self.predicted and (not self.wanted or self.decision is not None)


@dataclass(eq=False)
class CheckTask:
    """One submission: images that arrived together and are answered together.

    Attributes:
        images: Rows in the model's input space.
        rows: State of each row.
        answer_first: Whether the prediction is wanted before the check (policy ``monitor``):
            round 0 is then the image alone.
        background: Whether it only runs while nothing else waits, and makes room for everything else.
        whole: Whether nothing is decided before all N blends are seen, so that scores are exact.
        client: Whose it is; takes turns with the others.
        logits: The model's output for each row, filled in by round 0.
        answered: Whether an ``answer_first`` task's prediction is complete.
        error: Why the task failed, if it did.
    """

    images: Images
    rows: list[Row]
    answer_first: bool = False
    background: bool = False
    whole: bool = False
    client: str = ""
    logits: np.ndarray | None = None
    answered: bool = False
    error: BaseException | None = None

    @classmethod
    def of(
        cls,
        images: Images,
        to_check: Bool[np.ndarray, " n"],
        *,
        answer_first: bool = False,
        background: bool = False,
        whole: bool = False,
        client: str = "",
    ) -> CheckTask:
        """Return a task for these images; rows outside ``to_check`` only get their prediction."""
        rows = [Row(bool(wanted)) for wanted in to_check]
        return cls(images, rows, answer_first, background, whole, client)

    @property
    def size(self) -> int:
        """Rows that it has."""
        return len(self.rows)
