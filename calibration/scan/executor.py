"""Runs a scan's units in this process, and keeps what is done so that a scan goes on where it stopped."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from calibration.progress import Progress
from calibration.scan.base import Arrays, Bench, Executor, Unit
from guard.artifact.reader import NPY_ERRORS

__all__ = ["Keeping", "LocalExecutor", "Watched", "gather"]


@dataclass(frozen=True, eq=False)
class LocalExecutor(Executor):
    """One unit after the other, here."""

    bench: Bench

    def __str__(self) -> str:
        """``local``, and torch's threads."""
        return f"local, {torch.get_num_threads()} threads"

    def run(self, units: Sequence[Unit]) -> Iterator[tuple[int, Arrays]]:
        """Yield each unit's place and result, in the order given."""
        for place, unit in enumerate(units):
            yield place, unit.run(self.bench)


@dataclass(frozen=True, eq=False)
class Keeping(Executor):
    """Another executor, whose results are kept in a folder; what is there already is not done again.

    Args:
        inner: Does what is not there.
        folder: Gets one ``.npz`` a unit, named by the digest of the unit's key and the bench's.
        digest: The bench's.
        told: Called with each unit as it is done or found.
    """

    inner: Executor
    folder: Path
    digest: str
    told: Callable[[Unit], None] = lambda unit: None

    def run(self, units: Sequence[Unit]) -> Iterator[tuple[int, Arrays]]:
        """Yield what is there first, then the rest as it comes in."""
        missing: list[int] = []
        for place, unit in enumerate(units):
            kept = _read(self._path(unit))
            if kept is None:
                missing.append(place)
                continue
            self.told(unit)
            yield place, kept
        if not missing:
            return  # an executor may start a cluster even for nothing
        for nth, arrays in self.inner.run([units[place] for place in missing]):
            unit = units[missing[nth]]
            _write(self._path(unit), arrays)
            self.told(unit)
            yield missing[nth], arrays

    def _path(self, unit: Unit) -> Path:
        name = hashlib.sha256(f"{self.digest}\n{unit.key}".encode()).hexdigest()
        return self.folder / f"{name[:32]}.npz"


@dataclass(frozen=True, eq=False)
class Watched(Executor):
    """Another executor, whose work is shown on a bar: images that go through the model."""

    inner: Executor
    progress: Progress

    def run(self, units: Sequence[Unit]) -> Iterator[tuple[int, Arrays]]:
        """Yield what the other does."""
        self.progress.expect(sum(unit.weight for unit in units))
        for place, arrays in self.inner.run(units):
            self.progress.step(units[place].weight)
            yield place, arrays


def gather(executor: Executor, units: Sequence[Unit]) -> list[Arrays]:
    """Run units and return their results in the units' order."""
    found = dict(executor.run(units))
    return [found[place] for place in range(len(units))]


def _read(path: Path) -> Arrays | None:
    """Return what is kept; None if nothing is, or a half-written file."""
    if not path.exists():
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except NPY_ERRORS:
        return None
    return arrays if all(isinstance(array, np.ndarray) for array in arrays.values()) else None


def _write(path: Path, arrays: Arrays) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    partial.replace(path)
