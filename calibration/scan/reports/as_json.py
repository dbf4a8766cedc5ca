"""A scan's result for programs: all of it but the pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Set
from typing import Any

import numpy as np

from calibration.scan.base import Finding, FoundTrigger, ScanReport, ScanResult
from calibration.scan.reports.folders import folders_by_report

__all__ = ["FORMAT", "to_json"]

FORMAT = 1


def to_json(result: ScanResult) -> str:
    """Return everything that a scan found as JSON, format 1.

    Numbers are finite: NaN and infinities become null, and keep their name. A trigger is a reference: the
    name of its finding, its form, ASR and size, and the folder that it is saved in. The same result gives the
    same text.
    """
    record = {
        "format": FORMAT,
        "verdict": result.verdict,
        "model": {"source": result.model, "sha256": result.model_sha256, "kind": result.model_kind},
        "data": {
            "source": result.data,
            "sha256": result.data_sha256,
            "clean": result.clean,
            "held": result.held,
            "accuracy": result.acc,
        },
        "classes": result.classes,
        "class_names": result.class_names,
        "seed": result.seed,
        "executor": result.executor,
        "machine": result.machine,
        "versions": result.versions,
        "started": result.started,
        "seconds": result.seconds,
        "notes": result.notes,
        "reports": _reports(result),
    }
    return json.dumps(_plain(record), indent=2, allow_nan=False) + "\n"


def _reports(result: ScanResult) -> list[dict[str, Any]]:
    parted = zip(result.reports, folders_by_report(result), strict=True)
    return [_report(report, folders) for report, folders in parted]


def _report(report: ScanReport, folders: Mapping[str, FoundTrigger]) -> dict[str, Any]:
    return {
        "scanner": report.scanner,
        "verdict": report.verdict,
        "reasons": report.reasons,
        "p_value": report.p_value,
        "measure": report.measure,
        "findings": [_finding(finding) for finding in report.findings],
        "triggers": [_trigger(trigger, folder) for folder, trigger in folders.items()],
        "suspects": report.suspects,
        "options": report.options,
        "facts": report.facts,
        "seconds": report.seconds,
    }


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        "name": finding.name,
        "target": finding.target,
        "source": finding.source,
        "score": finding.score,
        "p_value": finding.p_value,
        "flagged": finding.flagged,
        "facts": finding.facts,
    }


def _trigger(trigger: FoundTrigger, folder: str) -> dict[str, Any]:
    return {
        "finding": trigger.finding,
        "form": trigger.form,
        "asr": trigger.asr,
        "size": trigger.size,
        "folder": folder,
    }


def _plain(value: object) -> object:
    """Return a value as JSON can hold it; what it cannot hold as text."""
    plain: object = str(value)
    match value:
        case None | bool() | int() | str():
            plain = value
        case float():
            plain = value if math.isfinite(value) else None
        case np.generic() | np.ndarray():
            plain = _plain(value.tolist())
        case Mapping():
            plain = {str(name): _plain(held) for name, held in value.items()}
        case Set():
            plain = sorted((_plain(held) for held in value), key=str)
        case list() | tuple():
            plain = [_plain(held) for held in value]
    return plain
