"""A scan's result as one page that stands alone: no scripts, nothing fetched, pictures and charts inside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

from calibration.html_markup import Markup, element, join, table
from calibration.html_page import definitions, mono, named, page
from calibration.scan.base import ScanReport, ScanResult
from calibration.scan.reports.folders import folders_by_report
from calibration.scan.reports.html_guide import LIMITS_ANCHOR, MEANINGS, limits, reading
from calibration.scan.reports.html_scanner import scanner_anchor, scanner_section
from calibration.scan.reports.words import (
    HEADLINES,
    label_text,
    number,
    percentage,
    reasons_of,
    seconds_text,
)

__all__ = ["to_html"]

_NOWHERE: Mapping[str, str] = MappingProxyType({})


def to_html(result: ScanResult, triggers: Mapping[str, str] = _NOWHERE) -> str:
    """Return a page for people: the verdict and why, what each scanner measured, and the triggers it found.

    Args:
        result: Of the scan.
        triggers: Where each trigger of :func:`~calibration.scan.reports.folders.trigger_folders` was written,
            by its folder's name, relative to the page; those are links.
    """
    return page(f"{HEADLINES[result.verdict]}: backdoor scan of {result.model}", *_sections(result, triggers))


def _sections(result: ScanResult, triggers: Mapping[str, str]) -> Iterator[Markup]:
    yield _banner(result)
    yield _scanners(result)
    yield _subject(result)
    for place, folders in enumerate(folders_by_report(result)):
        yield scanner_section(result, result.reports[place], place, folders, triggers)
    yield reading()
    yield limits()
    yield _footer(result)


def _footer(result: ScanResult) -> Markup:
    version = result.versions.get("inference-guard", "")
    return element(
        "footer",
        f"guard {version}, scan of {result.started}. ",
        f"Seed {result.seed}, the same options and the same versions give the same result.",
    )


def _banner(result: ScanResult) -> Markup:
    reasons = [element("li", reason) for reason in reasons_of(result)]
    return element(
        "header",
        element("p", "Backdoor scan of an image classifier", class_="eyebrow"),
        element(
            "div",
            element("h1", HEADLINES[result.verdict]),
            element("p", mono(result.model)),
            element("p", MEANINGS[result.verdict], *_caveat(result)),
            element("ul", *reasons) if reasons else Markup(),
            class_=f"verdict {result.verdict}",
        ),
    )


def _caveat(result: ScanResult) -> list[Markup]:
    if result.verdict != "clean":
        return []
    return [Markup(" "), element("a", "What this does not exclude.", href=f"#{LIMITS_ANCHOR}")]


def _scanners(result: ScanResult) -> Markup:
    rows = [
        [
            element("a", report.scanner, href=f"#{scanner_anchor(place)}"),
            element("span", report.verdict, class_=f"word {report.verdict}"),
            _flagged(result, report),
            number(report.p_value),
            seconds_text(report.seconds),
        ]
        for place, report in enumerate(result.reports)
    ]
    columns = ["scanner", "verdict", "flagged", "smallest p-value", "time"]
    caption = f"Scanners that looked: {len(rows)}. The verdict above follows from theirs."
    return element("section", element("h2", "Summary"), table(columns, rows, caption=caption, numbers=2))


def _flagged(result: ScanResult, report: ScanReport) -> str:
    labels = list(dict.fromkeys(finding.target for finding in report.flagged))
    named = ", ".join(label_text(result, label) for label in labels[:5])
    suspects = "" if report.suspects is None else f"{len(report.suspects)} training rows"
    more = f" and {len(labels) - 5} more" if len(labels) > 5 else ""
    return "; ".join(part for part in (named + more, suspects) if part) or "none"


def _subject(result: ScanResult) -> Markup:
    accuracy = f"{percentage(result.acc)} on the clean images"
    entries: dict[str, str] = {
        "Model": mono(result.model),
        "SHA-256": mono(result.model_sha256),
        "Kind": f"{result.model_kind}, {result.classes} classes",
        "Clean images": mono(result.data),
        "their SHA-256": mono(result.data_sha256),
        "Used": f"{result.clean} searched on, {result.held} held out to judge what was found",
        "Accuracy": "not known, no labels" if result.acc is None else accuracy,
        "Seed": str(result.seed),
        "Started": result.started,
        "Took": f"{seconds_text(result.seconds)}, executor {result.executor}",
        "Machine": named(result.machine),
        "Versions": named(result.versions),
    }
    notes = [element("li", note) for note in result.notes]
    return element(
        "section",
        element("h2", "What was scanned"),
        definitions(entries),
        join(element("h3", "Notes"), element("ul", *notes)) if notes else Markup(),
    )
