"""A healing as one page that stands alone: no scripts, nothing fetched."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from calibration.heal.healed import Attempt, Healed
from calibration.heal.words import headline, looked_text, meaning, measured_cells, steps_cells
from calibration.html_markup import Markup, element, table
from calibration.html_page import definitions, mono, named, page
from calibration.wording import seconds_text

__all__ = ["to_html"]

_STYLES = {"published": "good", "gates failed": "bad", "nothing found": "open"}


def to_html(healed: Healed, commands: Sequence[str] = ()) -> str:
    """Return a page for people: what was published or why not, and what each repair showed.

    Args:
        healed: It.
        commands: What to do next.
    """
    return page(f"{headline(healed)}: {healed.options.model}", *_sections(healed, commands))


def _sections(healed: Healed, commands: Sequence[str]) -> Iterator[Markup]:
    yield _banner(healed)
    for attempt in healed.attempts:
        yield _attempt(attempt)
    yield _steps(healed)
    yield _subject(healed, commands)
    yield element(
        "footer",
        f"guard {healed.versions.get('inference-guard', '')}, healing of {healed.started}. Seed "
        f"{healed.options.seed}; the overlays of the check are drawn anew each time, and are secret.",
    )


def _banner(healed: Healed) -> Markup:
    notes = [element("li", note) for note in healed.notes]
    return element(
        "header",
        element("p", "Healing of an image classifier", class_="eyebrow"),
        element(
            "div",
            element("h1", headline(healed)),
            element("p", mono(healed.options.model)),
            element("p", _capital(meaning(healed))),
            element("p", _capital(looked_text(healed)) + "."),
            element("ul", *notes) if notes else Markup(),
            class_=f"verdict {_STYLES[healed.ending]}",
        ),
    )


def _attempt(attempt: Attempt) -> Markup:
    if attempt.judgement is None:
        return element(
            "section", element("h2", attempt.method), element("p", f"Not tried: {attempt.why_not}.")
        )
    results = attempt.judgement.results
    rows = [(*measured_cells(one), one.measure.note) for one in results]
    columns = ["gate", "before", "now", "interval", "limit", "verdict", "what was measured"]
    hits = [one.verdict == "failed" for one in results]
    caption = (
        "Judged by images that neither this repair nor the calibration has seen, never by the true trigger."
    )
    failures = [element("li", failure) for failure in attempt.judgement.failures]
    outcome = "Passed all gates that could be measured." if attempt.passed else "May not be published:"
    options = ", ".join(f"{name} = {json.dumps(value)}" for name, value in attempt.options.items())
    return element(
        "section",
        element("h2", attempt.method),
        element("p", outcome),
        element("ul", *failures) if failures else Markup(),
        table(columns, rows, caption=caption, hits=hits),
        element("p", f"Options: {options}."),
    )


def _steps(healed: Healed) -> Markup:
    rows = [(*steps_cells(row), row.does) for row in healed.rows]
    caption = (
        f"{seconds_text(healed.seconds)} in this sitting; steps that were done before were not done again."
    )
    return element(
        "section",
        element("h2", "Steps"),
        table(["step", "state", "time", "what it does"], rows, caption=caption),
    )


def _subject(healed: Healed, commands: Sequence[str]) -> Markup:
    subject, check, parts = healed.subject, healed.subject.check, healed.parts
    entries: dict[str, str] = {"Original": mono(subject.sha256)}
    if subject.version is not None:
        entries["Version"] = f"{subject.version}, artifact {subject.artifact_sha256}"
    if healed.artifact is not None and healed.chosen is not None:
        entries |= {
            "New version": mono(str(healed.artifact)),
            "its model": mono(str(healed.chosen.sha256)),
            "its artifact": mono(str(healed.artifact_sha256)),
        }
    entries |= {
        "Clean images": mono(healed.data_sha256),
        "Parted": f"{parts['learn']} to scan and repair with, {parts['judge']} to judge by, "
        f"{parts['calibrate']} to calibrate with",
        "Check": f"{check.blend}, N = {check.overlays}, {check.threshold}, false rejections {check.frr:g}",
        "Started": healed.started,
        "Machine": named(healed.machine),
        "Versions": named(healed.versions),
    }
    listed = [element("li", element("code", command)) for command in commands]
    return element(
        "section",
        element("h2", "What was healed"),
        definitions(entries),
        element("h3", "Next") if listed else Markup(),
        element("ul", *listed) if listed else Markup(),
    )


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
