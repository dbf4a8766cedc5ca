"""What ``guard repair`` is asked to do."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from calibration.errors import OptionError
from calibration.preprocessing import Transform
from calibration.repair.base import Repair
from calibration.repair.settings import require_known
from calibration.repair.table import DEFAULT_METHOD, REPAIRS, Entry
from guard.artifact.signature import Layout

__all__ = ["MODEL", "PARTIAL", "REPORT", "DeviceName", "RepairOptions"]

DeviceName = Literal["auto", "cpu", "cuda"]

PARTIAL = "partial"
"""Folder in ``--out`` for what a repair that was broken off goes on from."""

MODEL = "model.onnx"
"""The repaired model in ``--out``."""

REPORT = "repair.json"
"""The report in ``--out``: a model beside it was written by a repair, and may be written anew."""


@dataclass(frozen=True)
class RepairOptions:
    """One repair.

    Attributes:
        model: ONNX file, torch.export archive, or ``package.module:factory``.
        out: Folder for the repaired model, the reports and what a broken-off repair goes on from.
        method: Name of the repair.
        settings: Its options, in place of its defaults.
        data: Clean images; None for repairs that need none.
        labels: ``.npy`` of their class indices, or None for those that ``data`` may hold.
        scan: Folder of a scan of this model, for the triggers and distributions that it found.
        triggers: Folders of known triggers.
        training_set: Images and labels that the model was trained on, as ``data``; None if not at hand.
        training_labels: As ``labels``.
        held: Share of the clean images that nothing is fitted to.
        flip: Whether an image may be mirrored; None to see what the model says of mirrored images.
        padding: Pixels that a training image may be shifted by; None for an eighth of its side.
        weights: A factory's.
        input_shape: Channels, height and width that a factory's network takes.
        transform: Preprocessing asked for.
        layout: The model's layout, where its shape does not tell.
        seed: Of everything random.
        threads: Of torch; None for one a core.
        device: Where it is trained.
        anew: Do again what this repair has done before it was broken off.
        quiet: Show no progress.

    Raises:
        OptionError: If a value is out of its range, or the method lacks what it needs.
    """

    model: str
    out: Path
    method: str = DEFAULT_METHOD
    settings: Mapping[str, Any] = field(default_factory=dict)
    data: Path | None = None
    labels: Path | None = None
    scan: Path | None = None
    triggers: tuple[Path, ...] = ()
    training_set: Path | None = None
    training_labels: Path | None = None
    held: float = 0.1
    flip: bool | None = None
    padding: int | None = None
    weights: Path | None = None
    input_shape: tuple[int, int, int] | None = None
    transform: Transform = field(default_factory=Transform)
    layout: Layout | None = None
    seed: int = 0
    threads: int | None = None
    device: DeviceName = "auto"
    anew: bool = False
    quiet: bool = False

    def __post_init__(self) -> None:
        require_known(self.method)
        self._check_values()
        self._check_needs()
        self._check_out()
        self.make()

    @property
    def entry(self) -> Entry:
        """The method's row in the table."""
        return REPAIRS[self.method]

    def make(self) -> Repair:
        """Return the repair, with its options.

        Raises:
            OptionError: If an option does not fit it.
        """
        try:
            return self.entry.make(**self.settings)
        except (TypeError, ValueError) as error:
            raise OptionError(f"{self.method}: {error}; see guard repair --explain {self.method}") from error

    def _check_values(self) -> None:
        if not 0 <= self.held < 1:
            raise OptionError(f"--held {self.held}: expected a share from 0 up to but not 1, such as 0.1")
        if self.padding is not None and self.padding < 0:
            raise OptionError(f"--padding {self.padding}: expected 0 pixels or more")
        if self.threads is not None and self.threads < 1:
            raise OptionError(f"--threads {self.threads}: expected at least 1")
        if self.seed < 0:
            raise OptionError(f"--seed {self.seed}: expected a whole number from 0")

    def _check_needs(self) -> None:
        """Refuse what can be told from the flags alone, before anything is read."""
        if self.data is None and self.labels is not None:
            raise OptionError(f"--labels {self.labels} was given without --data; give the images too")
        if self.training_set is None and self.training_labels is not None:
            raise OptionError(
                f"--training-labels {self.training_labels} was given without --training-set; give the images "
                f"too"
            )
        needs = self.entry.needs
        if "images" in needs and self.data is None:
            raise OptionError(f"{self.method} needs clean images; give them with --data")
        if "trigger" in needs and self.scan is None and not self.triggers:
            raise OptionError(
                f"{self.method} needs a trigger; give the folder of a guard scan with --scan, or that of a "
                f"known trigger with --trigger"
            )
        if "distribution" in needs and self.scan is None:
            raise OptionError(
                f"{self.method} needs a distribution of triggers; run guard scan --distribution and give its "
                f"folder with --scan"
            )
        if "poisoned set" in needs and self.training_set is None:
            raise OptionError(
                f"{self.method} needs the training set that may be poisoned; give it with --training-set, or "
                f"choose a repair that works on clean images (--list)"
            )

    def _check_out(self) -> None:
        if self.out.exists() and not self.out.is_dir():
            raise OptionError(f"--out {self.out} is a file; expected a folder")
        if (self.out / MODEL).resolve() == Path(self.model).resolve():
            raise OptionError(f"--out {self.out} would overwrite {self.model}; choose another folder")
        if (self.out / MODEL).exists() and not (self.out / REPORT).exists():
            raise OptionError(
                f"--out {self.out} would overwrite a {MODEL} that no guard repair wrote; choose another"
            )
        there = next(path for path in (self.out.absolute(), *self.out.absolute().parents) if path.exists())
        if not os.access(there, os.W_OK | os.X_OK):
            raise OptionError(f"--out {self.out} cannot be written: no permission in {there}; choose another")
