"""A scan's result as a section of a model card, in Markdown as Hugging Face shows it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from calibration.scan.base import ScanReport, ScanResult
from calibration.scan.reports.words import (
    HEADLINES,
    LIMITS,
    finding_label,
    number,
    percentage,
    printable,
    seconds_text,
)

__all__ = ["to_model_card"]

_MARKUP = re.compile(r"([\\`*_\[\]<>#|~$&!])")
_ADDRESS = re.compile(r"(?i)\b(https?|ftp|mailto):|\bwww\.|@")
_FLAGGED = 5


def to_model_card(result: ScanResult) -> str:
    """Return a short section "Backdoor scan" to put into a model card."""
    return "\n".join(_lines(result)) + "\n"


def _lines(result: ScanResult) -> Iterator[str]:
    yield "## Backdoor scan"
    yield ""
    yield f"**{HEADLINES[result.verdict]}** (verdict: `{result.verdict}`)."
    yield ""
    yield "| Scanner | Verdict | Flagged | p-value |"
    yield "|---|---|---|---|"
    yield from (_row(result, report) for report in result.reports)
    yield ""
    accuracy = (
        "" if result.acc is None else f", on which the model is right {percentage(result.acc)} of the time"
    )
    yield f"- Model: SHA-256 {_code(result.model_sha256)}, {result.classes} classes"
    yield f"- Clean images: {result.clean} searched on, {result.held} held out{accuracy}"
    yield f"- Scanned: {_text(result.started)}, seed {result.seed}, {seconds_text(result.seconds)}"
    yield from (f"- Note: {_text(note)}" for note in result.notes)
    yield ""
    yield LIMITS[0]


def _row(result: ScanResult, report: ScanReport) -> str:
    names = [_text(finding_label(result, finding)) for finding in report.flagged[:_FLAGGED]]
    more = len(report.flagged) - len(names)
    flagged = ", ".join(names) + (f" and {more} more" if more > 0 else "") or "none"
    return f"| {_text(report.scanner)} | {report.verdict} | {flagged} | {number(report.p_value)} |"


def _text(text: str) -> str:
    """Return text that Markdown shows as it is: no markup, no HTML, no links made of addresses."""
    escaped = _MARKUP.sub(r"\\\1", printable(text))
    return _ADDRESS.sub(lambda found: f"{found[0][:-1]}&#{ord(found[0][-1])};", escaped)


def _code(text: str) -> str:
    return f"`{printable(text).replace('`', '')}`"
