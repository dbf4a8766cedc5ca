"""What a healing came to, for people: text for a terminal, a document, and the files of the work folder."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator

from calibration.evaluation.report import Table
from calibration.heal.gates import GateResult
from calibration.heal.healed import Attempt, Healed
from calibration.heal.html_report import to_html
from calibration.heal.places import write_text
from calibration.heal.record import to_record
from calibration.heal.words import headline, looked_text, meaning, measured_cells, steps_cells
from calibration.wording import command_line, printable

__all__ = ["REPORTS", "next_commands", "to_markdown", "to_text", "write_reports"]

REPORTS = ("heal.json", "heal.md", "heal.html")


def write_reports(healed: Healed) -> None:
    """Write ``heal.json``, ``heal.md`` and ``heal.html`` into the work folder."""
    record = json.dumps(to_record(healed), indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    texts = (record, to_markdown(healed), to_html(healed, next_commands(healed)))
    for name, text in zip(REPORTS, texts, strict=True):
        write_text(healed.options.out / name, text)


def to_text(healed: Healed, columns: int = 100) -> str:
    """Return what was done, for a terminal."""
    lines = [*_wrapped("", f"{headline(healed)}: {meaning(healed)}", columns)]
    lines += _wrapped("  ", looked_text(healed), columns)
    for attempt in healed.attempts:
        lines += ["", *_wrapped("", f"{attempt.method}: {_outcome(attempt)}", columns)]
        if attempt.judgement is not None:
            lines += [*_gates(attempt).text()]
            lines += [
                line for failure in attempt.judgement.failures for line in _wrapped("  ", failure, columns)
            ]
    lines += ["", *_steps(healed).text(), ""]
    lines += [line for note in healed.notes for line in _wrapped("note: ", note, columns)]
    lines += [f"report: {healed.options.out / name}" for name in REPORTS]
    return "\n".join([*lines, *(f"next: {command}" for command in next_commands(healed))]) + "\n"


def to_markdown(healed: Healed) -> str:
    """Return a document for whoever decides whether the new version is served."""
    lines = [f"# {headline(healed)}: `{printable(healed.options.model)}`", "", meaning(healed), ""]
    lines += [looked_text(healed), ""]
    lines += [f"- Original: SHA-256 `{healed.subject.sha256}`"]
    if healed.artifact is not None and healed.chosen is not None:
        lines += [f"- New version: `{printable(str(healed.artifact))}`, SHA-256 `{healed.chosen.sha256}`"]
    for attempt in healed.attempts:
        lines += ["", f"## {attempt.method}", "", _outcome(attempt)]
        if attempt.judgement is not None:
            lines += ["", *_gates(attempt).markdown()]
            lines += ["", *(f"- {printable(failure)}" for failure in attempt.judgement.failures)]
    lines += ["", "## Steps", "", *_steps(healed).markdown()]
    if healed.notes:
        lines += ["", "## Notes", "", *(f"- {printable(note)}" for note in healed.notes)]
    commands = next_commands(healed)
    if commands:
        lines += ["", "## Next", "", *(f"    {command}" for command in commands)]
    return "\n".join(lines) + "\n"


def next_commands(healed: Healed) -> tuple[str, ...]:
    """Return what to do with the new version; nothing without one."""
    if healed.artifact is None:
        return ()
    return (
        command_line("guard", "verify", healed.artifact),
        command_line("guard", "serve", "--repository", healed.artifact.parent.parent),
    )


def _outcome(attempt: Attempt) -> str:
    if attempt.judgement is None:
        return f"not tried: {attempt.why_not}"
    return "passed all gates that could be measured" if attempt.passed else "may not be published"


def _gates(attempt: Attempt) -> Table:
    results: Iterator[GateResult] = iter(attempt.judgement.results if attempt.judgement else ())
    head = ("gate", "before", "now", "interval", "limit", "verdict")
    return Table(head, tuple(measured_cells(one) for one in results))


def _steps(healed: Healed) -> Table:
    return Table(("step", "state", "time"), tuple(steps_cells(row) for row in healed.rows))


def _wrapped(start: str, text: str, columns: int) -> list[str]:
    return textwrap.wrap(
        printable(text),
        columns,
        initial_indent=start,
        subsequent_indent=" " * len(start),
        break_long_words=False,
        break_on_hyphens=False,
    )
