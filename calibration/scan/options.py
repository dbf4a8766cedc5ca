"""What ``guard scan`` is asked to do, by flags or by a TOML file."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from calibration.errors import OptionError
from calibration.preprocessing import Transform
from calibration.scan.base import Scanner
from calibration.scan.table import SCANNERS
from guard.artifact.signature import Layout

__all__ = ["PARTIAL", "ExecutorName", "ScanOptions", "read_settings"]

ExecutorName = Literal["local", "ray"]

PARTIAL = "partial"
"""Folder in ``--out`` for what is kept of a scan that may be broken off."""


@dataclass(frozen=True)
class ScanOptions:
    """One scan.

    Attributes:
        model: ONNX file, torch.export archive, or ``package.module:factory``.
        data: Clean images; None to make them from the model itself.
        labels: ``.npy`` of their class indices, or None for those that ``data`` may hold.
        out: Folder for the reports, the triggers and what a broken-off scan goes on from.
        weights: A factory's.
        input_shape: Channels, height and width that a factory's network takes.
        training_set: Images and labels that the model was trained on, as ``data``; None if not at hand.
        training_labels: As ``labels``.
        scanners: Names; None for those that are usual and have what they need.
        targets: Labels to look at; None for all.
        steps: Of the searches, at most; None for each scanner's own.
        settings: Options of scanners by their names, in place of their own defaults.
        alpha: Chance that all scanners that give a chance call a clean model backdoored, together.
        images: Most clean images to search on; as many again, at most, judge what was found.
        made: Images to make where there are none.
        transform: Preprocessing asked for.
        layout: The model's layout, where its shape does not tell.
        seed: Of everything random.
        executor: Where the work is done.
        address: Of a Ray cluster; None starts one here.
        workers: Of Ray; None for as many as fit.
        threads: Of torch, here or in each worker; None for one a core, or one in each worker.
        distribution: Learn for each flagged label the distribution of its small patches, for a repair.
        anew: Do again what an earlier scan into the same folder has done.
        quiet: Show no progress.

    Raises:
        OptionError: If a value is out of its range.
    """

    model: str
    out: Path
    data: Path | None = None
    labels: Path | None = None
    weights: Path | None = None
    input_shape: tuple[int, int, int] | None = None
    training_set: Path | None = None
    training_labels: Path | None = None
    scanners: tuple[str, ...] | None = None
    targets: tuple[int, ...] | None = None
    steps: int | None = None
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    alpha: float = 0.01
    images: int = 500
    made: int = 100
    transform: Transform = field(default_factory=Transform)
    layout: Layout | None = None
    seed: int = 0
    executor: ExecutorName = "local"
    address: str | None = None
    workers: int | None = None
    threads: int | None = None
    distribution: bool = False
    anew: bool = False
    quiet: bool = False

    def __post_init__(self) -> None:
        _require(0 < self.alpha < 1, f"--alpha {self.alpha}", "a chance between 0 and 1, such as 0.01")
        for flag in ("images", "made"):
            _require(getattr(self, flag) >= 1, f"--{flag} {getattr(self, flag)}", "at least 1")
        for flag in ("threads", "workers", "steps"):
            value = getattr(self, flag)
            _require(value is None or value >= 1, f"--{flag} {value}", "at least 1")
        _require(self.seed >= 0, f"--seed {self.seed}", "a whole number from 0")
        for target in self.targets or ():
            _require(target >= 0, f"--targets {target}", "class indices from 0")
        _require(self.executor in {"local", "ray"}, f"--executor {self.executor}", "local or ray")
        if self.executor == "local" and (self.address is not None or self.workers is not None):
            raise OptionError("--address and --workers are Ray's; add --executor ray")
        for name in (*(self.scanners or ()), *self.settings):
            _require(name in SCANNERS, f"scanner {name!r}", f"one of {', '.join(SCANNERS)}")
        self._check_images()
        self._check_out()
        self.chosen()

    def chosen(self) -> tuple[Scanner, ...]:
        """Return the scanners, with their options.

        Raises:
            OptionError: If one lacks what it needs, or an option does not fit it.
        """
        names = self.scanners or tuple(
            name for name, entry in SCANNERS.items() if entry.usual and self._has(name)
        )
        if self.training_set is not None and not any(
            SCANNERS[name].needs == "training set" for name in names
        ):
            raise OptionError(
                f"--training-set {self.training_set} was given, but none of {', '.join(names)} looks at it; "
                f"leave it out, or name a scanner that does"
            )
        lacking = [name for name in names if not self._has(name)]
        if lacking:
            raise OptionError(f"{', '.join(lacking)} needs the training set; give one with --training-set")
        names = tuple(dict.fromkeys(names))
        sharing = max(1, sum("alpha" in SCANNERS[name].flags for name in names))
        return tuple(self._make(name, sharing) for name in names)

    def settings_of(self, name: str) -> dict[str, Any]:
        """Return the options given for a scanner."""
        return {key: _frozen(value) for key, value in self.settings.get(name, {}).items()}

    def _has(self, name: str) -> bool:
        return SCANNERS[name].needs == "images" or self.training_set is not None

    def _make(self, name: str, count: int) -> Scanner:
        entry = SCANNERS[name]
        known = set(entry.load().__dataclass_fields__)
        given = self.settings_of(name)
        unknown = sorted(set(given) - known)
        _require(not unknown, f"{name}: {', '.join(unknown)}", f"options among {', '.join(sorted(known))}")
        flags = {
            "alpha": self.alpha / count,
            "labels": None if self.targets is None else tuple(dict.fromkeys(self.targets)),
            "steps": self.steps,
        }
        usual = {flag: flags[flag] for flag in entry.flags if flags[flag] is not None}
        try:
            return entry.make(**(usual | given))
        except (TypeError, ValueError) as error:
            raise OptionError(f"{name}: {error}") from error

    def _check_images(self) -> None:
        if self.data is None and self.labels is not None:
            raise OptionError(f"--labels {self.labels} was given without --data; give the images too")
        if self.training_set is None and self.training_labels is not None:
            raise OptionError(
                f"--training-labels {self.training_labels} was given without --training-set; give the images "
                f"too"
            )

    def _check_out(self) -> None:
        if self.out.exists() and not self.out.is_dir():
            raise OptionError(f"--out {self.out} is a file; expected a folder")
        there = next(path for path in (self.out.absolute(), *self.out.absolute().parents) if path.exists())
        if not os.access(there, os.W_OK | os.X_OK):
            raise OptionError(f"--out {self.out} cannot be written: no permission in {there}; choose another")


def read_settings(path: Path) -> dict[str, dict[str, Any]]:
    """Return the scanners' options in a TOML file: a table for each scanner.

    Raises:
        OptionError: If the file cannot be read, or holds anything but tables.
    """
    try:
        settings = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise OptionError(f"--config {path} cannot be read: {error}") from error
    loose = [name for name, table in settings.items() if not isinstance(table, dict)]
    if loose:
        raise OptionError(
            f"--config {path}: {', '.join(loose)} stands alone; expected tables such as [neural_cleanse]"
        )
    return settings


def _frozen(value: Any) -> Any:
    """Return lists of TOML as tuples, as the options of scanners are."""
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _require(holds: bool, what: str, expected: str) -> None:
    if not holds:
        raise OptionError(f"{what}: expected {expected}")
