"""What a scan left in its folder, for the commands that go on from there; read without torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calibration.errors import DataError

__all__ = ["Findings", "read_findings"]

REPORT, TRIGGERS = "scan.json", "triggers"
DISTRIBUTION = "distribution-"


@dataclass(frozen=True)
class Findings:
    """What a scan found.

    Attributes:
        folder: Of the scan.
        model_sha256: Digest of the file that was scanned.
        targets: Labels that a scanner flagged, rising.
        triggers: Folders of the flagged findings' triggers, in the report's order.
        distributions: Folders of the patch distributions, by label.
    """

    folder: Path
    model_sha256: str
    targets: tuple[int, ...]
    triggers: tuple[Path, ...]
    distributions: dict[int, Path]


def read_findings(folder: Path) -> Findings:
    """Read the folder that ``guard scan --out`` wrote.

    Raises:
        DataError: If there is no report in it, or a trigger that the report names is missing.
    """
    if not (folder / REPORT).is_file():
        raise DataError(
            f"--scan {folder}: expected the folder that guard scan --out wrote; it has no {REPORT}"
        )
    try:
        record = json.loads((folder / REPORT).read_text())
        found = _findings(folder, record)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"--scan {folder}: expected the folder that guard scan --out wrote, with {REPORT}; "
            f"{type(error).__name__}: {' '.join(str(error).split())}"
        ) from error
    missing = [path for path in (*found.triggers, *found.distributions.values()) if not path.is_dir()]
    if missing:
        raise DataError(f"--scan {folder}: {missing[0]} is named in its report, but not there; scan again")
    return found


def _findings(folder: Path, record: dict[str, Any]) -> Findings:
    if record["format"] != 1:
        raise ValueError(f"expected format 1, got {record['format']!r}")
    targets: set[int] = set()
    triggers: list[Path] = []
    for report in record["reports"]:
        flagged = {finding["name"] for finding in report["findings"] if finding["flagged"]}
        targets |= {int(finding["target"]) for finding in report["findings"] if finding["flagged"]}
        triggers += [
            folder / TRIGGERS / _own(trigger["folder"])
            for trigger in report["triggers"]
            if trigger["finding"] in flagged
        ]
    learned = {
        int(path.name.removeprefix(DISTRIBUTION)): path
        for path in (folder / TRIGGERS).glob(f"{DISTRIBUTION}*")
        if path.name.removeprefix(DISTRIBUTION).isdecimal()
    }
    return Findings(
        folder,
        str(record["model"]["sha256"]),
        tuple(sorted(targets)),
        tuple(triggers),
        {label: learned[label] for label in sorted(learned)},
    )


def _own(name: str) -> str:
    """Refuse a name that leads out of the folder."""
    if Path(name).name != name or name in {".", ".."}:
        raise ValueError(f"expected the name of a folder, got {name!r}")
    return name
