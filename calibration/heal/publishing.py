"""Calibrates the repaired model and writes it as the next version, with where it came from beside it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from calibration.calibrate import calibrate
from calibration.options import CalibrateOptions
from guard.artifact import next_version, read_artifact
from guard.errors import GuardError

__all__ = ["LINEAGE", "is_there", "made_from", "publish", "published_as"]

LINEAGE: Final = "heal.json"
"""File of the artifact that says where it came from."""


def publish(options: CalibrateOptions, lineage: Mapping[str, Any]) -> dict[str, Any]:
    """Calibrate and write the next version; return where it is, as plain values.

    Args:
        options: Of the calibration; its model was exported and checked by the repair.
        lineage: What ``heal.json`` says.

    Raises:
        GuardError: If the model cannot be calibrated or the directory not written; nothing is there then.
    """
    text = json.dumps(lineage, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    report = calibrate(options, {LINEAGE: text.encode()})
    return _described(report.artifact)


def _described(version: Path) -> dict[str, Any]:
    """Return where an artifact is, and what it is, as plain values."""
    artifact = read_artifact(version)
    profile = artifact.profile
    return {
        "artifact": str(version.resolve()),
        "sha256": artifact.digest,
        "frr": profile.promise.certified_frr,
        "detector": profile.check.detector,
        "boundary_bits": profile.boundary.boundary_bits,
        "accuracy": profile.calibration.accuracy,
    }


def is_there(result: Mapping[str, Any]) -> bool:
    """Tell whether a version that was published is there as it was."""
    try:
        return bool(read_artifact(Path(result["artifact"])).digest == result["sha256"])
    except GuardError:
        return False


def published_as(directory: Path, key: str) -> dict[str, Any] | None:
    """Return the version that a job broken off after it published left, by its step's key."""
    for version, lineage in _lineages(directory):
        if lineage.get("key") == key:
            try:
                return _described(version)
            except GuardError:
                return None
    return None


def made_from(directory: Path, work: str) -> list[tuple[Path, Path]]:
    """Return the versions that a work folder's jobs made in a directory, each with that it was made from."""
    found = []
    for version, lineage in _lineages(directory):
        source = lineage.get("original")
        if (
            lineage.get("work") == work
            and isinstance(source, dict)
            and str(source.get("version", "")).isdecimal()
        ):
            found.append((version, directory / str(source["version"])))
    return found


def _lineages(directory: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield versions, the highest first, and what their ``heal.json`` says, where there is one."""
    for number in range(next_version(directory) - 1, 0, -1):
        version = directory / str(number)
        try:
            lineage = json.loads((version / LINEAGE).read_text())
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(lineage, dict):
            yield version, lineage
