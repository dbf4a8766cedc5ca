"""Bar charts of what a scanner measured for each label, as SVG.

Up to 64 labels have a row each, with their name, value and anomaly index. More are drawn as a profile, all
values in rising order in one strip of fixed width, below rows for the most suspicious.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median

from calibration.html_markup import Markup, element, join
from calibration.html_page import svg_text
from calibration.scan.base import Finding, ScanReport, ScanResult
from calibration.scan.reports.words import label_text, number

__all__ = ["Bar", "bars", "chart"]

WIDTH = 960.0
"""Of every chart, whatever the number of labels, in the drawing's own units."""

_MOST_ROWS = 64
_ROWS_OF_MANY = 24
_ROW = 22.0
_LEFT, _RIGHT = 216.0, 700.0
_INDEX_AT, _FLAG_AT = 862.0, 956.0
_HEAD, _TOP, _BOTTOM, _STRIP = 18.0, 30.0, 26.0, 190.0
_NAMED = 6
_CHARACTERS = 28


@dataclass(frozen=True)
class Bar:
    """One label's value.

    Attributes:
        target: The label.
        value: Size of its trigger, or the scanner's score; the most suspicious of its sources.
        flagged: Whether a finding of it is flagged.
        anomaly: Its anomaly index, where there is one.
    """

    target: int
    value: float
    flagged: bool
    anomaly: float | None


def bars(report: ScanReport) -> tuple[list[Bar], str]:
    """Return a bar for each label, the most suspicious first, and what its length is."""
    sized = any("size" in finding.facts for finding in report.findings)
    by_target: dict[int, list[Finding]] = {}
    for finding in report.findings:
        by_target.setdefault(finding.target, []).append(finding)
    measured = [_bar(target, findings, sized=sized) for target, findings in by_target.items()]
    return measured, "trigger size" if sized else report.measure


def chart(result: ScanResult, report: ScanReport) -> Markup:
    """Return the chart of a report; nothing if it has no findings."""
    measured, measure = bars(report)
    if not measured:
        return Markup()
    if len(measured) <= _MOST_ROWS:
        return element("figure", _rows(result, measured, measured, measure), class_="chart")
    shown = measured[:_ROWS_OF_MANY]
    return element(
        "figure",
        _profile(result, measured, measure),
        element("figcaption", f"All {len(measured)} labels, by {measure}; flagged ones are marked."),
        _rows(result, shown, measured, measure),
        element("figcaption", f"The {len(shown)} most suspicious."),
        class_="chart",
    )


def _bar(target: int, findings: list[Finding], *, sized: bool) -> Bar:
    values = [float(finding.facts.get("size", math.nan)) if sized else finding.score for finding in findings]
    known = [value for value in values if math.isfinite(value)]
    value = (min(known) if sized else max(known)) if known else math.nan
    indices = [
        float(finding.facts["anomaly_index"]) for finding in findings if "anomaly_index" in finding.facts
    ]
    finite = [index for index in indices if math.isfinite(index)]
    flagged = any(finding.flagged for finding in findings)
    return Bar(target, value, flagged, max(finite, default=None))


def _extent(measured: list[Bar]) -> tuple[float, float]:
    """Return the largest length and the median; a negative value has none."""
    known = [max(bar.value, 0.0) for bar in measured if math.isfinite(bar.value)]
    return (max(known) or 1.0, median(known)) if known else (1.0, 0.0)


def _rows(result: ScanResult, shown: list[Bar], measured: list[Bar], measure: str) -> Markup:
    largest, middle = _extent(measured)
    scale = (_RIGHT - _LEFT) / largest
    middle_at = _LEFT + middle * scale
    end = _TOP + _ROW * len(shown)
    indexed = any(bar.anomaly is not None for bar in shown)
    return element(
        "svg",
        svg_text(_LEFT - 10, _HEAD, "label", "head end"),
        svg_text(_LEFT, _HEAD, measure, "head"),
        svg_text(_INDEX_AT, _HEAD, "anomaly index", "head end") if indexed else Markup(),
        *(_length(bar, place, scale) for place, bar in enumerate(shown)),
        element("line", x1=_LEFT, y1=_TOP, x2=_LEFT, y2=end, class_="axis"),
        element("line", x1=_round(middle_at), y1=_TOP, x2=_round(middle_at), y2=end + 6, class_="median"),
        *(_words(result, bar, place, scale) for place, bar in enumerate(shown)),
        svg_text(middle_at, end + 20, f"median {number(middle)}", "note middle"),
        viewBox=f"0 0 {WIDTH} {end + _BOTTOM}",
        role="img",
        aria_label=_said(result, measured, measure),
    )


def _length(bar: Bar, place: int, scale: float) -> Markup:
    return element(
        "rect",
        x=_LEFT,
        y=_TOP + _ROW * place + 4,
        width=_round(_positive(bar.value) * scale),
        height=_ROW - 8,
        class_=f"bar {_mark(bar)}",
    )


def _words(result: ScanResult, bar: Bar, place: int, scale: float) -> Markup:
    base = _TOP + _ROW * place + 15
    name, mark = label_text(result, bar.target), _mark(bar)
    index = (
        Markup() if bar.anomaly is None else svg_text(_INDEX_AT, base, f"{bar.anomaly:.2f}", f"end {mark}")
    )
    return join(
        element("g", element("title", name), svg_text(_LEFT - 10, base, _cut(name), f"end {mark}")),
        svg_text(_LEFT + _positive(bar.value) * scale + 7, base, number(bar.value), f"value {mark}"),
        index,
        svg_text(_FLAG_AT, base, "◀ flagged", "end flagged") if bar.flagged else Markup(),
    )


def _profile(result: ScanResult, measured: list[Bar], measure: str) -> Markup:
    known = [bar for bar in measured if math.isfinite(bar.value)]
    ordered = sorted(known, key=lambda bar: (bar.value, bar.target))
    largest, middle = _extent(measured)
    left, floor = 64.0, _TOP + _STRIP
    step = (WIDTH - left - 4) / max(len(ordered), 1)
    tops = [floor - _positive(bar.value) * _STRIP / largest for bar in ordered]
    flagged = [place for place, bar in enumerate(ordered) if bar.flagged]
    outline = "".join(f"V{top:.1f}H{left + step * (place + 1):.2f}" for place, top in enumerate(tops))
    return element(
        "svg",
        svg_text(left, _HEAD, measure, "head"),
        *(_tick(share * largest, floor - share * _STRIP, left) for share in (0.0, 0.5, 1.0)),
        element("path", d=f"M{left} {floor}{outline}V{floor}Z", class_="area"),
        *(
            _flag(result, ordered[at], (left + (at + 0.5) * step, tops[at]), nth)
            for nth, at in enumerate(flagged)
        ),
        _line(left, floor - middle * _STRIP / largest, "median"),
        svg_text(WIDTH - 4, _HEAD, f"dashed: median {number(middle)}", "note end"),
        svg_text((WIDTH + left) / 2, floor + 20, f"{len(ordered)} labels, smallest first", "note middle"),
        viewBox=f"0 0 {WIDTH} {floor + _BOTTOM + 2}",
        role="img",
        aria_label=_said(result, measured, measure),
    )


def _flag(result: ScanResult, bar: Bar, tip: tuple[float, float], nth: int) -> Markup:
    """Return a flagged bar of the profile with a mark above it, and its name if it is among the first."""
    at, top = tip
    marked = join(
        element("path", d=f"M{at:.2f} {_TOP + _STRIP}V{top:.1f}", class_="flag"),
        element("path", d=f"M{at:.1f} {top - 3:.1f}l-4 -8h8z", class_="mark"),
    )
    if nth >= _NAMED:
        return marked
    base = _TOP + 18 + 17 * nth
    to_left = at > WIDTH / 2
    hook, text_at = (-14, at - 18) if to_left else (14, at + 18)
    name = f"{_cut(label_text(result, bar.target))}: {number(bar.value)}"
    return join(
        marked,
        element("path", d=f"M{at:.1f} {top - 11:.1f}V{base - 4}h{hook}", class_="leader"),
        svg_text(text_at, base, name, "value flagged end" if to_left else "value flagged"),
    )


def _tick(value: float, at: float, left: float) -> Markup:
    return join(_line(left, at, "grid"), svg_text(left - 8, at + 4, number(value), "note end"))


def _line(left: float, at: float, style: str) -> Markup:
    return element("line", x1=_round(left), y1=_round(at), x2=WIDTH - 4, y2=_round(at), class_=style)


def _said(result: ScanResult, measured: list[Bar], measure: str) -> str:
    """Return the chart in a sentence, for those who cannot see it."""
    named = [label_text(result, bar.target) for bar in measured if bar.flagged]
    flagged = ", ".join(named[:_NAMED]) + (f" and {len(named) - _NAMED} more" if len(named) > _NAMED else "")
    _, middle = _extent(measured)
    counted = f"Bar chart: {measure} of {len(measured)} labels, median {number(middle)}"
    return f"{counted}; flagged: {flagged or 'none'}."


def _mark(bar: Bar) -> str:
    return "flagged" if bar.flagged else "plain"


def _positive(value: float) -> float:
    """Return what can be drawn of a value: nothing of a negative or unknown one."""
    return max(value, 0.0) if math.isfinite(value) else 0.0


def _cut(name: str) -> str:
    return name if len(name) <= _CHARACTERS else f"{name[: _CHARACTERS - 1]}…"


def _round(value: float) -> str:
    return f"{value:.1f}"
