"""What speaks of the backdoor before anything is repaired: the scan's triggers and the quarantined inputs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int64

from calibration.data import ImageSet
from calibration.evaluation.subject import read_candidate
from calibration.heal.options import HealOptions
from calibration.heal.subject import Subject
from calibration.heal.suspects import UNKNOWN, Suspects, led_to, read_suspects
from calibration.intake import rows_of
from calibration.preprocessing import Transform, plan_input

__all__ = ["Evidence", "Quarantined", "weigh_suspects"]

_BATCH = 256
_OTHERWISE = 0.05
"""Share of suspects that the model may answer otherwise than is told, before a reader should know."""


@dataclass(frozen=True, eq=False)
class Quarantined:
    """Suspects, and what the original model gives them.

    Attributes:
        suspects: They.
        labels: The label each was given: what is told with it, else what the model gives it now.
        label: The class that they are led to; None where none stands out.
        notes: What a reader should know.
    """

    suspects: Suspects
    labels: Int64[np.ndarray, " n"]
    label: int | None
    notes: tuple[str, ...]

    @property
    def led(self) -> Bool[np.ndarray, " n"]:
        """Those that were given the class they are led to; all where none stands out."""
        return np.ones(len(self.labels), bool) if self.label is None else self.labels == self.label


@dataclass(frozen=True, eq=False)
class Evidence:
    """All that speaks of the backdoor.

    Attributes:
        scan: Folder of the scan; None if it flagged nothing.
        scanners: That a repaired model is scanned with.
        anomaly_index: The largest of the original; None where there is none.
        p_value: The smallest of the original.
        quarantined: Suspects, if any were given.
    """

    scan: Path | None
    scanners: tuple[str, ...]
    anomaly_index: float | None
    p_value: float | None
    quarantined: Quarantined | None


def weigh_suspects(
    subject: Subject, clean: ImageSet, transform: Transform, options: HealOptions
) -> Quarantined | None:
    """Read the suspects and ask the original model about them; None if none were given.

    Args:
        subject: The original model.
        clean: Clean images, for what it gives those.
        transform: Their preprocessing.
        options: Say where the suspects lie.

    Raises:
        GuardError: If they cannot be read, or are not this model's inputs.
    """
    if options.suspects is None:
        return None
    candidate = read_candidate(
        str(subject.file), weights=None, input_shape=None, layout=subject.layout, size=transform.size
    )
    prepare = plan_input(candidate.signature, clean.images, transform)
    rows = rows_of(clean.images, prepare, candidate.signature)
    classes = candidate.classes(rows[:1])
    suspects = read_suspects(options.suspects, candidate.signature, classes)
    with candidate.opened(prepare, rows[:1], classes, options.device, options.threads) as answer:
        usual, given = (
            np.concatenate([answer(some[at : at + _BATCH]).argmax(1) for at in range(0, len(some), _BATCH)])
            for some in (rows, suspects.images)
        )
    known = suspects.labels != UNKNOWN
    labels = np.where(known, suspects.labels, given).astype(np.int64)
    otherwise = float((suspects.labels[known] != given[known]).mean()) if known.any() else 0.0
    notes = []
    if suspects.left_out:
        notes.append(f"{suspects.left_out} suspects hold NaN or infinite values, and were left out")
    if otherwise > _OTHERWISE:
        notes.append(
            f"the model gives {otherwise:.0%} of the suspects another label than is told with them; they may "
            f"have been sent to another version"
        )
    label = led_to(labels, usual.astype(np.int64), classes)
    if label is None:
        notes.append("no class stands out among the suspects' labels; all of them are counted")
    return Quarantined(suspects, labels, label, tuple(notes))
