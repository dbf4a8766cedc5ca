"""Source and target pairs as a table whose cells are tinted by score."""

from __future__ import annotations

import math

from calibration.html_markup import Markup, element
from calibration.scan.base import Finding, ScanReport, ScanResult
from calibration.scan.reports.words import label_text, number

__all__ = ["pairs"]

_MOST = 20
_DEEPEST = 0.55


def pairs(result: ScanResult, report: ScanReport) -> Markup:
    """Return the table of a report's pairs; nothing if it has none.

    At most 20 sources and 20 targets are shown, those of the most suspicious pairs.
    """
    found = {
        (finding.source, finding.target): finding
        for finding in reversed(report.findings)
        if finding.source is not None
    }
    if not found:
        return Markup()
    sources = _first([finding.source for finding in report.findings if finding.source is not None])
    targets = _first([finding.target for finding in report.findings if finding.source is not None])
    scores = [finding.score for finding in found.values() if math.isfinite(finding.score)]
    low, high = (min(scores), max(scores)) if scores else (0.0, 0.0)
    body = [
        element(
            "tr",
            element("th", label_text(result, source), scope="row"),
            *(_cell(found.get((source, target)), low, high) for target in targets),
        )
        for source in sources
    ]
    head = [element("th", label_text(result, target), scope="col") for target in targets]
    table = element(
        "table",
        element("caption", _caption(report, len(found), len(sources), len(targets))),
        element("thead", element("tr", element("th", "source ↓ target →", scope="col"), *head)),
        element("tbody", *body),
        class_="heat",
    )
    return element("div", table, class_="wide")


def _first(labels: list[int]) -> list[int]:
    """Return the first 20 different labels, rising."""
    return sorted(list(dict.fromkeys(labels))[:_MOST])


def _caption(report: ScanReport, count: int, sources: int, targets: int) -> str:
    return (
        f"{report.measure} of each pair of source and target; a stronger tint is more suspicious, ● is "
        f"flagged. {count} pairs were looked at; {sources} sources and {targets} targets are shown."
    )


def _cell(finding: Finding | None, low: float, high: float) -> Markup:
    if finding is None:
        return element("td", "", class_="num")
    share = (finding.score - low) / (high - low) if high > low and math.isfinite(finding.score) else 0.0
    score = f"{finding.score:.2f}" if abs(finding.score) < 100 else number(finding.score)
    text = f"● {score}" if finding.flagged else score
    style = f"background-color:rgba(var(--heat),{_DEEPEST * share:.2f})"
    return element("td", text, class_="num hit" if finding.flagged else "num", style=style)
