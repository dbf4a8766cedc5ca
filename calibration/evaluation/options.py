"""What ``guard evaluate`` is asked to do."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from calibration.errors import OptionError
from calibration.preprocessing import Transform
from guard.artifact.signature import Layout
from guard.runtime.onnx_classifier import Device

__all__ = ["EvaluateOptions"]


@dataclass(frozen=True)
class EvaluateOptions:
    """One evaluation.

    Attributes:
        model: ONNX file, torch.export archive, or ``package.module:factory``.
        data: Test images, which nothing was fitted to.
        labels: ``.npy`` of their class indices, or None for those that ``data`` may hold.
        original: The model before the repair, to compare with; in any of the same forms.
        triggers: Folders of known triggers.
        scan: Folder of a scan, whose flagged triggers are tried too.
        out: Folder for the reports; None writes none.
        weights: Of a factory that makes ``model``.
        original_weights: Of a factory that makes ``original``.
        input_shape: Channels, height and width that factories' networks take.
        transform: Preprocessing asked for.
        layout: The models' layout, where their shapes do not tell.
        confidence: Of all intervals.
        device: Where ONNX Runtime runs.
        threads: Of ONNX Runtime; None for one a core.
        quiet: Show no progress.

    Raises:
        OptionError: If a value is out of its range, or given without what it belongs to.
    """

    model: str
    data: Path
    labels: Path | None = None
    original: str | None = None
    triggers: tuple[Path, ...] = ()
    scan: Path | None = None
    out: Path | None = None
    weights: Path | None = None
    original_weights: Path | None = None
    input_shape: tuple[int, int, int] | None = None
    transform: Transform = field(default_factory=Transform)
    layout: Layout | None = None
    confidence: float = 0.95
    device: Device = "auto"
    threads: int | None = None
    quiet: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.confidence < 1:
            raise OptionError(f"--confidence {self.confidence}: expected a number between 0 and 1, as 0.95")
        if self.threads is not None and self.threads < 1:
            raise OptionError(f"--threads {self.threads}: expected at least 1")
        if self.original is None and self.original_weights is not None:
            raise OptionError(
                f"--original-weights {self.original_weights} was given without --original; give the factory"
            )
        if self.out is not None and self.out.exists() and not self.out.is_dir():
            raise OptionError(f"--out {self.out} is a file; expected a folder")
