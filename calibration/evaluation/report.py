"""An evaluation as text, as Markdown and for programs; one set of tables behind all three."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calibration.evaluation.fallen import fallen_record
from calibration.evaluation.job import Evaluation
from calibration.evaluation.measuring import COPIES, Known, Measured, Outcome
from calibration.evaluation.numbers import Agreement, Share, UnderTrigger
from calibration.wording import number, percentage, printable, seconds_text

__all__ = [
    "Table",
    "acc_table",
    "agreement_record",
    "class_table",
    "measured_record",
    "share_record",
    "to_markdown",
    "to_record",
    "to_text",
    "trigger_table",
    "write",
]

FORMAT = 1


@dataclass(frozen=True)
class Table:
    """Cells in rows; the first column is text, the others are numbers."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def text(self) -> Iterator[str]:
        """Yield lines for a terminal."""
        everything = (self.head, *self.rows)
        widths = [max(len(row[column]) for row in everything) for column in range(len(self.head))]
        for row in everything:
            cells = [
                cell.rjust(width) if column else cell.ljust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            yield f"  {'  '.join(cells)}".rstrip()

    def markdown(self) -> Iterator[str]:
        """Yield lines of a Markdown table."""
        yield _row(self.head)
        yield _row(("---", *("---:" for _ in self.head[1:])))
        yield from (_row(row) for row in self.rows)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def to_text(evaluation: Evaluation) -> str:
    """Return what was measured, for a terminal."""
    lines = [f"{printable(evaluation.model.where)}: {_subject(evaluation)}", ""]
    for title, table in _tables(evaluation):
        lines += [f"{title}:", *table.text(), ""]
    lines += [f"note: {printable(note)}" for note in evaluation.notes]
    return "\n".join(lines).rstrip() + "\n"


def to_markdown(evaluation: Evaluation) -> str:
    """Return what was measured, as a document."""
    lines = [f"# Evaluation of `{printable(evaluation.model.where)}`", "", _subject(evaluation) + ".", ""]
    lines += [f"- Model: SHA-256 `{evaluation.model.sha256}`"]
    if evaluation.original is not None:
        original = evaluation.original
        lines += [f"- Original: `{printable(original.where)}`, SHA-256 `{original.sha256}`"]
    lines += [f"- Images: `{evaluation.options.data.name}`, SHA-256 `{evaluation.images.digest}`", ""]
    for title, table in _tables(evaluation):
        lines += [f"## {title[0].upper()}{title[1:]}", "", *table.markdown(), ""]
    if evaluation.notes:
        lines += ["## Notes", "", *(f"- {printable(note)}" for note in evaluation.notes), ""]
    return "\n".join(lines).rstrip() + "\n"


def to_record(evaluation: Evaluation) -> dict[str, Any]:
    """Return what was measured as plain values, format 1."""
    original, before = evaluation.original, evaluation.before
    return {
        "format": FORMAT,
        "model": {"source": evaluation.model.where, "sha256": evaluation.model.sha256},
        "original": original and {"source": original.where, "sha256": original.sha256},
        "data": {
            "source": str(evaluation.options.data),
            "sha256": evaluation.images.digest,
            "images": len(evaluation.images),
            "labels": evaluation.images.labels is not None,
        },
        "classes": evaluation.classes,
        "class_names": evaluation.images.class_names,
        "confidence": evaluation.options.confidence,
        "measured": measured_record(evaluation.measured, evaluation.known),
        "before": before and measured_record(before, evaluation.known),
        "agreement": agreement_record(evaluation.agreement),
        "fallen": fallen_record(evaluation.fallen),
        "notes": list(evaluation.notes),
        "machine": evaluation.machine,
        "versions": evaluation.versions,
        "started": evaluation.started,
        "seconds": evaluation.seconds,
    }


def measured_record(measured: Measured, known: Sequence[Known]) -> dict[str, Any]:
    """Return what one model does, as plain values."""
    return {
        "acc": share_record(measured.acc),
        "by_class": [share_record(one) for one in measured.by_class],
        "triggers": {
            each.name: {"attack": each.attack.name, **_outcome_record(outcome)}
            for each, outcome in zip(known, measured.triggers, strict=True)
        },
    }


def agreement_record(both: Agreement | None) -> dict[str, Any] | None:
    """Return an agreement as plain values."""
    return None if both is None else {"same": share_record(both.same), "kl_bits": both.kl_bits}


def share_record(one: Share | None) -> dict[str, Any] | None:
    """Return a share as plain values; none of no images."""
    if one is None:
        return None
    value = one.value
    return {"value": value if math.isfinite(value) else None, **vars(one)}


def _outcome_record(outcome: Outcome) -> dict[str, Any]:
    copies: Mapping[int, UnderTrigger] = outcome.amplified
    return {
        **_under_record(outcome.once),
        "acc_non_target": share_record(outcome.acc_non_target),
        "amplified": {str(count): _under_record(under) for count, under in copies.items()},
    }


def _under_record(under: UnderTrigger | None) -> dict[str, Any]:
    return {
        "asr": share_record(None if under is None else under.asr),
        "robust_accuracy": share_record(None if under is None else under.robust),
    }


def write(evaluation: Evaluation, out: Path) -> tuple[Path, ...]:
    """Write the reports into a folder, which is made if it is not there; return their places."""
    out.mkdir(parents=True, exist_ok=True)
    written = {
        "evaluation.json": json.dumps(to_record(evaluation), indent=2, allow_nan=False) + "\n",
        "evaluation.md": to_markdown(evaluation),
    }
    for name, text in written.items():
        (out / name).write_text(text)
    return tuple(out / name for name in written)


def _subject(evaluation: Evaluation) -> str:
    images = f"{len(evaluation.images):,} images, {evaluation.classes} classes"
    sure = f"intervals of {number(100 * evaluation.options.confidence)}% confidence"
    return f"{images}, {sure}, {seconds_text(evaluation.seconds)}"


def _tables(evaluation: Evaluation) -> Iterator[tuple[str, Table]]:
    measured, before = evaluation.measured, evaluation.before
    yield "clean images", acc_table(measured, before, evaluation.agreement)
    if evaluation.known:
        yield "under triggers", trigger_table(evaluation.known, measured, before)
    if measured.by_class:
        yield "by class", class_table(measured, before, evaluation.images.class_names)


def acc_table(measured: Measured, before: Measured | None, both: Agreement | None) -> Table:
    """Return accuracy, and how much the two models agree."""
    rows = []
    if measured.acc is not None:
        if before is not None and before.acc is not None:
            rows.append(("accuracy before", *_cells(before.acc)))
        rows.append(("accuracy", *_cells(measured.acc)))
    if both is not None:
        rows.append(("same prediction as before", *_cells(both.same)))
        rows.append(("divergence from before", f"{both.kl_bits:.3g} bits", ""))
    return Table(("", "share", "interval"), tuple(rows))


def trigger_table(known: Sequence[Known], measured: Measured, before: Measured | None) -> Table:
    """Return what triggers do: success rate and robust accuracy, amplified too."""
    compared = () if before is None else ("asr before",)
    head = ("trigger", *compared, "asr", "interval", "true class", "acc non-target")
    grids = [copies for copies in COPIES if any(copies in outcome.amplified for outcome in measured.triggers)]
    rows = []
    for place, (each, now) in enumerate(zip(known, measured.triggers, strict=True)):
        then = [] if before is None else [_asr(before.triggers[place].once)]
        interval = "–" if now.once is None else _interval(now.once.asr)
        robust = "–" if now.once is None else percentage(now.once.robust.value)
        others = "–" if now.acc_non_target is None else percentage(now.acc_non_target.value)
        more = [_asr(now.amplified.get(copies)) for copies in grids]
        rows.append((printable(each.name), *then, _asr(now.once), interval, robust, others, *more))
    return Table((*head, *(f"asr x{copies}" for copies in grids)), tuple(rows))


def class_table(measured: Measured, before: Measured | None, names: Sequence[str] | None) -> Table:
    """Return the accuracy of each class, and how it changed."""
    rows = []
    for label, now in enumerate(measured.by_class):
        then = before.by_class[label] if before is not None and before.by_class else None
        name = f"{label} {printable(names[label])}" if names and label < len(names) else str(label)
        change = [] if then is None else [percentage(then.value), _points(now.value - then.value)]
        rows.append((name, str(now.of), *change[:1], percentage(now.value), *change[1:]))
    head = ("class", "images", "before", "accuracy", "change")
    return Table(head if before is not None and before.by_class else (*head[:2], head[3]), tuple(rows))


def _cells(one: Share) -> tuple[str, str]:
    return percentage(one.value), _interval(one)


def _interval(one: Share) -> str:
    return f"{100 * one.low:.1f} to {100 * one.high:.1f}%"


def _asr(under: UnderTrigger | None) -> str:
    return "–" if under is None else percentage(under.asr.value)


def _points(change: float) -> str:
    return "–" if not math.isfinite(change) else f"{100 * change:+.1f}"
