"""A repair's result: as plain values, as a document, as text for a terminal."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from calibration.evaluation.fallen import Fallen, fallen_note, fallen_record
from calibration.evaluation.measuring import Measured
from calibration.evaluation.numbers import Agreement
from calibration.evaluation.report import (
    Table,
    acc_table,
    agreement_record,
    measured_record,
    trigger_table,
)
from calibration.repair.base import RepairResult, options_of
from calibration.repair.options import MODEL, RepairOptions
from calibration.repair.workbench import Laid
from calibration.wording import command_line, number, percentage, printable, seconds_text

__all__ = ["Repaired", "to_json", "to_markdown", "to_text"]

FORMAT = 1

_MUCH = 0.05
"""Accuracy that a repair may lose without a word."""


@dataclass(frozen=True, eq=False)
class Repaired:
    """What was done, and what it did.

    Attributes:
        options: What was asked for.
        laid: What it was done to, and with.
        result: What the repair answers.
        sha256: Digest of the repaired file.
        before: What the model did on the held images; None where there are none.
        after: What it does now.
        agreement: Between the two.
        fallen: Classes whose accuracy fell by more than chance.
        device: Where it was trained.
        machine: What kind of machine.
        versions: Of Python and the packages that compute.
        started: When, ISO 8601 in UTC.
        seconds: Wall-clock time of this sitting.
    """

    options: RepairOptions
    laid: Laid
    result: RepairResult
    sha256: str
    before: Measured | None
    after: Measured | None
    agreement: Agreement | None
    fallen: tuple[Fallen, ...]
    device: str
    machine: Mapping[str, str | int]
    versions: Mapping[str, str]
    started: str
    seconds: float

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know."""
        notes = [*self.laid.notes, *self.result.notes]
        if self.after is not None and self.laid.known and "trigger" in self.options.entry.needs:
            notes.append(
                "the triggers below are those that the repair was given; rates of others may be higher"
            )
        lost = _lost(self.before, self.after)
        if lost > _MUCH:
            notes.append(
                f"accuracy fell by {100 * lost:.1f} points on the held images; try more images, a lower rate "
                f"(--explain {self.options.method}), or another repair (--list)"
            )
        if self.fallen and self.laid.images is not None:
            notes.append(fallen_note(self.fallen, self.laid.images.class_names))
        if self.after is None:
            notes.append("no images were held back, so nothing was measured; use guard evaluate")
        return tuple(notes)


def to_json(repaired: Repaired) -> str:
    """Return everything that was done as JSON, format 1; numbers that are none become null."""
    return json.dumps(_finite(_record(repaired)), indent=2, allow_nan=False) + "\n"


def to_markdown(repaired: Repaired) -> str:
    """Return a document for whoever decides whether the repaired model is served."""
    options, model = repaired.options, repaired.laid.model
    lines = [f"# Repair of `{printable(options.model)}`", "", _sentence(repaired), ""]
    lines += [f"- Model: `{printable(options.model)}`, SHA-256 `{model.source_sha256}`"]
    lines += [f"- Repaired: `{MODEL}`, SHA-256 `{repaired.sha256}`"]
    lines += [f"- Method: `{options.method}`: {options.entry.does}"]
    lines += [f"- {line}" for line in _supplies(repaired)]
    for title, table in _tables(repaired):
        lines += ["", f"## {title}", "", *table.markdown()]
    lines += ["", "## Options", "", *_options(repaired).markdown()]
    if repaired.result.facts:
        facts = tuple((name, number(value)) for name, value in repaired.result.facts.items())
        lines += ["", "## Facts", "", *Table(("fact", "value"), facts).markdown()]
    if repaired.notes:
        lines += ["", "## Notes", "", *(f"- {printable(note)}" for note in repaired.notes)]
    lines += ["", "## Next", "", *(f"    {step}" for step in _next(repaired))]
    return "\n".join(lines) + "\n"


def to_text(repaired: Repaired, places: Sequence[Path] = (), columns: int = 100) -> str:
    """Return what was done, for a terminal.

    Args:
        repaired: It.
        places: Where files were written.
        columns: Width that sentences are wrapped to.
    """
    lines = _wrapped("", _sentence(repaired), columns)
    lines += [line for fact in _supplies(repaired) for line in _wrapped("  ", fact, columns)]
    for title, table in _tables(repaired):
        lines += ["", f"{title}:", *table.text()]
    if repaired.notes:
        lines += [""]
    lines += [line for note in repaired.notes for line in _wrapped("note: ", note, columns)]
    lines += ["", *(f"written: {printable(str(place))}" for place in places)]
    lines += [f"next: {step}" for step in _next(repaired)]
    return "\n".join(lines) + "\n"


def _record(repaired: Repaired) -> dict[str, Any]:
    options, laid, result = repaired.options, repaired.laid, repaired.result
    known, images = laid.known, laid.images
    return {
        "format": FORMAT,
        "method": options.method,
        "options": options_of(options.make()),
        "model": {
            "source": options.model,
            "sha256": laid.model.source_sha256,
            "kind": laid.model.kind,
            "output": laid.kind,
            "norms_put_back": laid.workable.norms,
        },
        "repaired": {"file": MODEL, "sha256": repaired.sha256},
        "data": images
        and {
            "source": str(options.data),
            "sha256": images.digest,
            "train": len(laid.supplies.train),
            "held": len(laid.supplies.held),
            "labels": laid.supplies.labelled,
            "acc": laid.acc,
        },
        "class_names": images and images.class_names,
        "classes": laid.supplies.classes,
        "augmentation": asdict(laid.supplies.augmentation) | {"mirror": laid.mirror},
        "scan": options.scan and str(options.scan),
        "triggers": [each.name for each in known],
        "distributions": list(laid.supplies.distributions),
        "training_set": options.training_set and str(options.training_set),
        "stages": [
            {**asdict(stage), "images_per_second": _speed(stage.images, stage.seconds)}
            for stage in result.stages
        ],
        "facts": dict(result.facts),
        "before": repaired.before and measured_record(repaired.before, known),
        "after": repaired.after and measured_record(repaired.after, known),
        "agreement": agreement_record(repaired.agreement),
        "fallen": fallen_record(repaired.fallen),
        "notes": list(repaired.notes),
        "seed": options.seed,
        "device": repaired.device,
        "machine": dict(repaired.machine),
        "versions": dict(repaired.versions),
        "started": repaired.started,
        "seconds": repaired.seconds,
    }


def _lost(before: Measured | None, after: Measured | None) -> float:
    if before is None or after is None or before.acc is None or after.acc is None:
        return 0.0
    return before.acc.value - after.acc.value


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): _finite(part) for name, part in value.items()}
    return [_finite(part) for part in value] if isinstance(value, list | tuple) else value


def _speed(images: int, seconds: float) -> float | None:
    return images / seconds if images and seconds else None


def _sentence(repaired: Repaired) -> str:
    options = repaired.options
    done = (
        f"Repaired {printable(options.model)} by {options.method} in {seconds_text(repaired.result.seconds)}"
    )
    before, after = repaired.before, repaired.after
    if before is None or after is None or before.acc is None or after.acc is None:
        return f"{done}."
    held = len(repaired.laid.supplies.held)
    return (
        f"{done}: accuracy on {held:,} held images {percentage(before.acc.value)} before, "
        f"{percentage(after.acc.value)} after."
    )


def _supplies(repaired: Repaired) -> Iterator[str]:
    laid, options = repaired.laid, repaired.options
    if laid.images is not None:
        labels = "with labels" if laid.supplies.labelled else "without labels"
        yield (
            f"{len(laid.supplies.train):,} clean images {labels} to learn from, {len(laid.supplies.held):,} "
            f"held back"
        )
        flip = "mirrored and " if laid.supplies.augmentation.flip else "not mirrored, "
        yield (
            f"training images were {flip}shifted by up to {laid.supplies.augmentation.padding} pixels "
            f"({laid.mirror})"
        )
    if laid.workable.norms:
        yield f"batch norm was put back after {laid.workable.norms} convolutions to learn, and folded again"
    if laid.known:
        yield f"triggers: {', '.join(printable(each.name) for each in laid.known)}"
    if laid.supplies.distributions:
        yield f"distributions of triggers for labels {', '.join(map(str, laid.supplies.distributions))}"
    yield f"seed {options.seed}, on {repaired.device}"


def _tables(repaired: Repaired) -> Iterator[tuple[str, Table]]:
    if repaired.after is not None:
        yield "Held images", acc_table(repaired.after, repaired.before, repaired.agreement)
        if repaired.laid.known:
            yield "Under triggers", trigger_table(repaired.laid.known, repaired.after, repaired.before)
    rows = tuple(
        (
            stage.name,
            seconds_text(stage.seconds),
            number(stage.images),
            number(_speed(stage.images, stage.seconds)),
            number(stage.losses[-1] if stage.losses else None),
        )
        for stage in repaired.result.stages
    )
    yield "Stages", Table(("stage", "time", "images", "images/s", "last loss"), rows)


def _options(repaired: Repaired) -> Table:
    options = options_of(repaired.options.make())
    return Table(("option", "value"), tuple((name, json.dumps(value)) for name, value in options.items()))


def _next(repaired: Repaired) -> Iterator[str]:
    """Yield commands that can be pasted into a shell; words in capitals are the reader's to fill in."""
    options = repaired.options
    made = options.out / MODEL
    layout = ["--layout", options.layout] if options.layout else []
    alike = [*options.transform.words(), *layout]
    weights = ["--original-weights", options.weights] if options.weights else []
    shape = ["--input", *options.input_shape] if options.input_shape else []
    original = ["--original", options.model, *weights, *shape]
    yield command_line("guard", "evaluate", made, *original, "--data", "TEST_IMAGES", *alike)
    labels = ["--labels", options.labels] if options.labels else []
    data = ["--data", options.data or "CLEAN_IMAGES", *labels]
    out = ["--out", "REPOSITORY/NAME"]
    yield command_line("guard", "calibrate", "--model", made, *data, *out, *alike)


def _wrapped(start: str, text: str, columns: int) -> list[str]:
    return textwrap.wrap(
        printable(text),
        columns,
        initial_indent=start,
        subsequent_indent=" " * len(start),
        break_long_words=False,
        break_on_hyphens=False,
    )
