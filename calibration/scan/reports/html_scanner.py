"""One scanner's section of the HTML report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from urllib.parse import quote

from calibration.html_markup import Markup, element, table
from calibration.scan.base import Finding, FoundTrigger, ScanReport, ScanResult
from calibration.scan.reports.html_chart import chart
from calibration.scan.reports.html_pairs import pairs
from calibration.scan.reports.html_pictures import pictures
from calibration.scan.reports.words import (
    finding_label,
    number,
    percentage,
    seconds_text,
)

__all__ = ["scanner_anchor", "scanner_section"]

_FINDINGS = 50
_TRIGGERS = 8
_SUSPECTS = 100


def scanner_anchor(place: int) -> str:
    """Return the name of the section of the report at that place."""
    return f"scanner-{place + 1}"


def scanner_section(
    result: ScanResult,
    report: ScanReport,
    place: int,
    folders: Mapping[str, FoundTrigger],
    where: Mapping[str, str],
) -> Markup:
    """Return all that one scanner found.

    Args:
        result: Of the whole scan.
        report: The scanner's.
        place: Of the report among the result's.
        folders: The report's triggers by the names of their folders.
        where: Where folders were written, relative to the page.
    """
    return element(
        "section",
        element("h2", report.scanner, id=f"{scanner_anchor(place)}-title"),
        _verdict(report),
        element("ul", *(element("li", reason) for reason in report.reasons)) if report.reasons else Markup(),
        *_drawn(result, report),
        *_triggers(result, report, folders, where),
        *_listed(result, report),
        *_suspects(report),
        *_settings(report),
        class_="scanner",
        id=scanner_anchor(place),
        aria_labelledby=f"{scanner_anchor(place)}-title",
    )


def _verdict(report: ScanReport) -> Markup:
    chance = "gives no p-value" if report.p_value is None else f"smallest p-value {number(report.p_value)}"
    return element(
        "p",
        element("strong", report.verdict, class_=f"word {report.verdict}"),
        f" · {len(report.flagged)} of {len(report.findings)} flagged · {chance}",
        f" · {seconds_text(report.seconds)}",
    )


def _drawn(result: ScanResult, report: ScanReport) -> Iterator[Markup]:
    if not report.findings:
        return
    yield element("h3", "Labels")
    yield chart(result, report)
    matrix = pairs(result, report)
    if matrix:
        yield element("h3", "Pairs")
        yield matrix


def _listed(result: ScanResult, report: ScanReport) -> Iterator[Markup]:
    if report.findings:
        yield element("h3", "Findings")
        yield _findings(result, report)


def _findings(result: ScanResult, report: ScanReport) -> Markup:
    shown = report.findings[:_FINDINGS]
    names = list(dict.fromkeys(name for finding in shown for name in finding.facts))
    columns = ["label", "flagged", report.measure, "p-value", *map(_column, names)]
    rows = [
        [
            finding_label(result, finding),
            "yes" if finding.flagged else "no",
            number(finding.score),
            number(finding.p_value),
            *(_fact(name, finding.facts.get(name)) for name in names),
        ]
        for finding in shown
    ]
    some, count = len(shown) < len(report.findings), len(report.findings)
    caption = f"The {len(shown)} most suspicious of {count}." if some else "The most suspicious first."
    hits = [finding.flagged for finding in shown]
    return table(columns, rows, caption=caption, numbers=2 + len(names), hits=hits)


def _column(name: str) -> str:
    return name.upper() if name in {"asr", "acc"} else name.replace("_", " ")


def _fact(name: str, value: float | int | None) -> str:
    return percentage(value) if name in {"asr", "acc", "share"} else number(value)


def _triggers(
    result: ScanResult, report: ScanReport, folders: Mapping[str, FoundTrigger], where: Mapping[str, str]
) -> Iterator[Markup]:
    if not folders:
        return
    yield element("h3", "Triggers that were found")
    by_name = {finding.name: finding for finding in report.findings}
    for folder, trigger in list(folders.items())[:_TRIGGERS]:
        yield _trigger(result, trigger, by_name.get(trigger.finding), folder, where.get(folder))
    if len(folders) > _TRIGGERS:
        yield element("p", f"{len(folders) - _TRIGGERS} more are in the folders beside this report.")


def _trigger(
    result: ScanResult, trigger: FoundTrigger, finding: Finding | None, folder: str, place: str | None
) -> Markup:
    name = trigger.finding if finding is None else finding_label(result, finding)
    flagged = finding is not None and finding.flagged
    aim = f"any class → {name}" if finding is not None and finding.source is None else name
    words = "flagged, " if flagged else ""
    saved = element("code", folder)
    return element(
        "div",
        element(
            "p",
            element("strong", aim),
            f" · {words}{trigger.form} · ASR {percentage(trigger.asr)} on held images · "
            f"size {number(trigger.size)} · ",
            saved if place is None else element("a", saved, href=quote(place, safe="/")),
        ),
        pictures(trigger, aim),
        class_="trigger",
    )


def _suspects(report: ScanReport) -> Iterator[Markup]:
    if report.suspects is None:
        return
    count = len(report.suspects)
    yield element("h3", "Training rows that look poisoned")
    if not count:
        yield element("p", "None.")
        return
    first = ", ".join(str(row) for row in report.suspects[:_SUSPECTS].tolist())
    more = f" … and {count - _SUSPECTS} more; all are in the JSON report" if count > _SUSPECTS else ""
    yield element("p", f"{count} rows, counted from 0:")
    yield element("p", f"{first}{more}", class_="rows")


def _settings(report: ScanReport) -> Iterator[Markup]:
    options = [f"{name} = {value}" for name, value in report.options.items()]
    facts = [f"{name} = {number(value)}" for name, value in report.facts.items()]
    if not options and not facts:
        return
    yield element("h3", "Options and effort")
    yield element("p", element("code", ", ".join(options)) if options else "Default options.")
    if facts:
        yield element("p", element("code", ", ".join(facts)))
