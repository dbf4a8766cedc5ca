"""What ``guard audit frr`` is asked to do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from calibration.errors import OptionError
from guard.runtime.onnx_classifier import Device

__all__ = ["FrrOptions"]


@dataclass(frozen=True)
class FrrOptions:
    """One audit.

    Attributes:
        artifact: ``<repository>/<model>/<version>``.
        data: Fresh clean images: a folder, an ``.npz`` or an ``.npy``.
        labels: ``.npy`` of class indices, or None for those that ``data`` may hold.
        confidence: 1 − δ of each bound.
        json: Where the report for programs goes; None for nowhere.
        device: Where the model runs.
        threads: CPU threads; None for one a core.
        quiet: Show no progress.

    Raises:
        OptionError: If a value is out of its range.
    """

    artifact: Path
    data: Path
    labels: Path | None = None
    confidence: float = 0.95
    json: Path | None = None
    device: Device = "auto"
    threads: int | None = None
    quiet: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.confidence < 1:
            raise OptionError(
                f"--confidence {self.confidence}: expected a number between 0 and 1, such as 0.95"
            )
        if self.threads is not None and self.threads < 1:
            raise OptionError(f"--threads {self.threads}: expected at least 1")
        if self.json is not None and not self.json.absolute().parent.is_dir():
            raise OptionError(f"--json {self.json}: {self.json.parent} is no directory; make it first")

    @property
    def delta(self) -> float:
        """Risk δ that a bound does not hold."""
        return 1.0 - self.confidence
