"""A scan's result as SARIF 2.1.0, which pipelines gather findings in."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from calibration.scan.base import Finding, ScanReport, ScanResult
from calibration.scan.reports.words import finding_label, number, percentage, printable
from guard import __version__

__all__ = ["to_sarif"]

_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_DIGEST = "guardFinding/v1"

Record = dict[str, Any]


def to_sarif(result: ScanResult) -> str:
    """Return a log with one run: a rule for each scanner, an error for each flagged label or pair.

    A scanner that says ``backdoored`` but flags no label (it may have found poisoned rows instead) gives one
    error, one that is inconclusive gives a warning, a clean one gives nothing.

    References:
        OASIS, Static Analysis Results Interchange Format (SARIF) Version 2.1.0, 2023.
    """
    log = {"$schema": _SCHEMA, "version": "2.1.0", "runs": [_run(result)]}
    return json.dumps(log, indent=2, allow_nan=False) + "\n"


def _run(result: ScanResult) -> Record:
    version = result.versions.get("inference-guard", __version__)
    properties = {"verdict": result.verdict, "modelKind": result.model_kind, "seed": result.seed}
    return {
        "tool": {"driver": {"name": "guard", "version": version, "rules": _rules(result)}},
        "automationDetails": {"id": "guard-scan/"},
        "columnKind": "unicodeCodePoints",
        "artifacts": [_artifact(result)],
        "invocations": [{"executionSuccessful": True, "startTimeUtc": _utc(result.started)}],
        "results": [found for report in result.reports for found in _results(result, report)],
        "properties": properties,
    }


def _rules(result: ScanResult) -> list[Record]:
    return [
        {
            "id": rule,
            "name": rule,
            "shortDescription": {"text": f"Backdoor found by the scanner {rule}"},
            "fullDescription": {
                "text": f"The scanner {rule} looked for a backdoor in the model and found evidence of one."
            },
            "defaultConfiguration": {"level": "error"},
            "properties": {"tags": ["security", "backdoor"], "security-severity": "9.0"},
        }
        for rule in _rule_names(result)
    ]


def _rule_names(result: ScanResult) -> list[str]:
    return list(dict.fromkeys(report.scanner for report in result.reports))


def _artifact(result: ScanResult) -> Record:
    hashes = {"hashes": {"sha-256": result.model_sha256}} if result.model_sha256 else {}
    return {"location": {"uri": _uri(result.model)}, "roles": ["analysisTarget"], **hashes}


def _uri(model: str) -> str:
    """Return where a model lies as a reference; a colon counts as a scheme's only in an address."""
    return quote(model.replace("\\", "/"), safe="/:?=&%" if "://" in model else "/")


def _results(result: ScanResult, report: ScanReport) -> Iterator[Record]:
    for finding in report.flagged:
        yield _flagged(result, report, finding)
    why = " ".join(printable(reason) for reason in report.reasons)
    if report.verdict == "backdoored" and not report.flagged:
        yield _record(result, report, "error", why or "The model looks backdoored.", "model")
    if report.verdict == "inconclusive":
        yield _record(result, report, "warning", f"Inconclusive. {why}".strip(), "inconclusive")


def _flagged(result: ScanResult, report: ScanReport, finding: Finding) -> Record:
    facts = {"score": finding.score, "pValue": finding.p_value, **finding.facts}
    known = {name: value for name, value in facts.items() if value is not None and math.isfinite(value)}
    name = finding_label(result, finding)
    message = (
        f"Class {name} looks like the target of a backdoor"
        if finding.source is None
        else f"The pair {name} looks like source and target of a backdoor"
    )
    record = _record(result, report, "error", f"{message} ({_evidence(finding)}).", finding.name)
    return {**record, "properties": known}


def _evidence(finding: Finding) -> str:
    parts = [f"score {number(finding.score)}"]
    if finding.p_value is not None:
        parts.append(f"p = {number(finding.p_value)}")
    if "size" in finding.facts:
        parts.append(f"size {number(finding.facts['size'])}")
    if "asr" in finding.facts:
        parts.append(f"ASR {percentage(finding.facts['asr'])}")
    return ", ".join(parts)


def _record(result: ScanResult, report: ScanReport, level: str, message: str, what: str) -> Record:
    digest = hashlib.sha256(f"{result.model_sha256}\n{report.scanner}\n{what}".encode()).hexdigest()
    return {
        "ruleId": report.scanner,
        "ruleIndex": _rule_names(result).index(report.scanner),
        "level": level,
        "message": {"text": _literal(message)},
        "locations": [
            {
                "physicalLocation": {"artifactLocation": {"uri": _uri(result.model), "index": 0}},
                "logicalLocations": [{"fullyQualifiedName": what, "kind": "member"}],
            }
        ],
        "partialFingerprints": {_DIGEST: digest},
    }


def _literal(message: str) -> str:
    """Return a message in which nothing is taken for a link or a placeholder."""
    return re.sub(r"([\\\[\]])", r"\\\1", message).replace("{", "{{").replace("}", "}}")


def _utc(started: str) -> str:
    """Return a time as SARIF writes UTC."""
    return re.sub(r"(\+00:00|Z)?$", "Z", started, count=1)
