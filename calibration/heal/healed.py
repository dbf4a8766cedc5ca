"""What a healing came to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from calibration.heal.gates import Judgement
from calibration.heal.options import HealOptions
from calibration.heal.steps import Row
from calibration.heal.subject import Subject
from calibration.scan.base import Verdict
from calibration.scan.job import EXIT_CODES

__all__ = ["EXIT_GATES", "Attempt", "Ending", "Healed", "Looked"]

Ending = Literal["published", "gates failed", "nothing found"]

EXIT_GATES: Final = 5
"""No repair passed the gates; 2 is an error, 0, 3 and 4 are a scan's."""


@dataclass(frozen=True)
class Looked:
    """What the scan of the original model found.

    Attributes:
        verdict: Of all scanners.
        targets: Labels that were flagged.
        reasons: Why, in sentences.
        scanners: Names.
        anomaly_index: The largest.
        p_value: The smallest.
        acc: Accuracy on the images it was given; None without labels.
    """

    verdict: Verdict
    targets: tuple[int, ...]
    reasons: tuple[str, ...]
    scanners: tuple[str, ...]
    anomaly_index: float | None
    p_value: float | None
    acc: float | None


@dataclass(frozen=True)
class Attempt:
    """One repair that was tried, or could not be.

    Attributes:
        method: Its name.
        why_not: Why it could not be tried or did not end; empty if it did.
        options: The repair's own, as plain values.
        sha256: Digest of the repaired model.
        judgement: What the gates say.
        model: The repaired model.
    """

    method: str
    why_not: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    sha256: str | None = None
    judgement: Judgement | None = None
    model: Path | None = None

    @property
    def passed(self) -> bool:
        """Whether it may be published."""
        return self.judgement is not None and self.judgement.passed


@dataclass(frozen=True, eq=False)
class Healed:
    """Everything that was done.

    Attributes:
        options: What was asked for.
        subject: The original.
        parts: How many images learned, judged and calibrated, by those names; ``copies`` were left out.
        data_sha256: Digest of the clean images.
        looked: What the scan found.
        attempts: Repairs in the order tried.
        chosen: The one that was published.
        suspects: How many, their digest and the label they are led to; None if none were given.
        artifact: The new version's directory.
        artifact_sha256: Digest of the new version.
        frr: What is certified of it.
        rows: The table of steps.
        notes: What a reader should know.
        machine: What kind.
        versions: Of Python and the packages that compute.
        started: When, ISO 8601 in UTC.
        seconds: Wall-clock time of this sitting.
    """

    options: HealOptions
    subject: Subject
    parts: Mapping[str, int]
    data_sha256: str
    looked: Looked
    attempts: tuple[Attempt, ...]
    chosen: Attempt | None
    suspects: Mapping[str, Any] | None
    artifact: Path | None
    artifact_sha256: str | None
    frr: float | None
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    machine: Mapping[str, str | int]
    versions: Mapping[str, str]
    started: str
    seconds: float

    @property
    def ending(self) -> Ending:
        """How it ended."""
        if self.artifact is not None:
            return "published"
        return "gates failed" if self.attempts else "nothing found"

    @property
    def exit_code(self) -> int:
        """0 published, 5 no repair passed, else what the scan's would be."""
        if self.ending == "nothing found":
            return EXIT_CODES[self.looked.verdict]
        return 0 if self.ending == "published" else EXIT_GATES
