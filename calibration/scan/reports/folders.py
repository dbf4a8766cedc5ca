"""Names of the folders that a scan's triggers are saved in; the reports refer to triggers by them."""

from __future__ import annotations

import re

from calibration.scan.base import FoundTrigger, ScanReport, ScanResult

__all__ = ["folders_by_report", "trigger_folders"]

_UNFIT = re.compile(r"[^A-Za-z0-9_]+")


def trigger_folders(result: ScanResult) -> dict[str, FoundTrigger]:
    """Return every trigger of a scan by the name of a folder for it.

    A name holds the scanner, the finding and the trigger's form, is fit for any file system, is nobody else's
    in this scan, and is the same whenever it is asked for. The order is that of the reports.
    """
    return {folder: trigger for report in folders_by_report(result) for folder, trigger in report.items()}


def folders_by_report(result: ScanResult) -> list[dict[str, FoundTrigger]]:
    """Return the same, parted by report."""
    taken: set[str] = set()
    return [_folders(report, taken) for report in result.reports]


def _folders(report: ScanReport, taken: set[str]) -> dict[str, FoundTrigger]:
    folders = {}
    for trigger in report.triggers:
        finding = trigger.finding.replace("→", "-to-")
        name = _unused(_UNFIT.sub("-", f"{report.scanner}-{finding}-{trigger.form}").strip("-"), taken)
        taken.add(name)
        folders[name] = trigger
    return folders


def _unused(name: str, taken: set[str]) -> str:
    candidate, count = name, 1
    while candidate in taken:
        count += 1
        candidate = f"{name}-{count}"
    return candidate
