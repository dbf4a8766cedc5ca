"""A scan's result as lines for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from calibration.scan.base import ScanReport, ScanResult, Verdict
from calibration.scan.reports.words import (
    finding_label,
    number,
    percentage,
    printable,
    seconds_text,
)

__all__ = ["to_text"]

_HEADLINES: dict[Verdict, str] = {
    "backdoored": "backdoor found in",
    "clean": "no backdoor found in",
    "inconclusive": "neither a backdoor nor its absence is certain in",
}
_ROWS = 20
_COLUMNS = ("scanner", "label", "score", "p", "size", "asr")


def to_text(result: ScanResult, places: Sequence[str] = (), *, columns: int = 100) -> str:
    """Return what a scan found: the verdict first, then each scanner, the flagged labels, where reports lie.

    Args:
        result: Of the scan.
        places: Where reports were written.
        columns: Width that reasons and notes are wrapped to.
    """
    return "\n".join(_lines(result, places, columns)) + "\n"


def _lines(result: ScanResult, places: Sequence[str], columns: int) -> Iterator[str]:
    yield f"{result.verdict.upper()}: {_HEADLINES[result.verdict]} {printable(result.model)}"
    yield (
        f"sha256 {printable(result.model_sha256)}, {result.classes} classes, "
        f"{result.clean} + {result.held} images{_accuracy(result)}, {seconds_text(result.seconds)}"
    )
    yield ""
    width = max((len(report.scanner) for report in result.reports), default=0)
    for report in result.reports:
        yield f"  {report.scanner:<{width}}  {_summary(report)}"
        for reason in report.reasons:
            yield from _wrapped(f"  {'':<{width}}  - ", reason, columns)
    yield from _flagged(result)
    if result.notes:
        yield ""
    for note in result.notes:
        yield from _wrapped("note: ", note, columns)
    if places:
        yield ""
        yield from (f"report: {printable(place)}" for place in places)


def _wrapped(start: str, text: str, columns: int) -> list[str]:
    """Return text after its start; further lines are as far in."""
    return textwrap.wrap(
        printable(text),
        columns,
        initial_indent=start,
        subsequent_indent=" " * len(start),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _accuracy(result: ScanResult) -> str:
    return "" if result.acc is None else f", accuracy {percentage(result.acc)}"


def _summary(report: ScanReport) -> str:
    flagged = f"{len(report.flagged)} of {len(report.findings)} flagged"
    chance = "" if report.p_value is None else f", p = {number(report.p_value)}"
    suspects = "" if report.suspects is None else f", {len(report.suspects)} suspect training rows"
    return f"{report.verdict:<12}  {flagged}{chance}{suspects}, {seconds_text(report.seconds)}"


def _flagged(result: ScanResult) -> Iterator[str]:
    rows = [
        (
            report.scanner,
            finding_label(result, finding),
            number(finding.score),
            number(finding.p_value),
            number(finding.facts.get("size")),
            percentage(finding.facts.get("asr")),
        )
        for report in result.reports
        for finding in report.flagged
    ]
    if not rows:
        return
    yield ""
    widths = [max(len(row[column]) for row in (_COLUMNS, *rows[:_ROWS])) for column in range(len(_COLUMNS))]
    for row in (_COLUMNS, *rows[:_ROWS]):
        cells = [
            f"{text:<{width}}" if column < 2 else f"{text:>{width}}"
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield f"  {'  '.join(cells)}"
    if len(rows) > _ROWS:
        yield f"  and {len(rows) - _ROWS} more"
