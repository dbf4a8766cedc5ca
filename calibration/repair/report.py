"""A repair's result: as plain values, as a document, as text for a terminal; `html_report` has the page."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from calibration.evaluation.fallen import fallen_record
from calibration.evaluation.report import (
    Table,
    acc_table,
    agreement_record,
    measured_record,
    trigger_table,
)
from calibration.repair.base import options_of
from calibration.repair.options import MODEL
from calibration.repair.repaired import Repaired, images_per_second, next_commands, sentence, supplied
from calibration.wording import number, printable, seconds_text

__all__ = ["to_json", "to_markdown", "to_text"]

FORMAT = 1


def to_json(repaired: Repaired) -> str:
    """Return everything that was done as JSON, format 1; numbers that are none become null."""
    return json.dumps(_finite(_record(repaired)), indent=2, allow_nan=False) + "\n"


def to_markdown(repaired: Repaired) -> str:
    """Return a document for whoever decides whether the repaired model is served."""
    options, model = repaired.options, repaired.laid.model
    lines = [f"# Repair of `{printable(options.model)}`", "", sentence(repaired), ""]
    lines += [f"- Model: `{printable(options.model)}`, SHA-256 `{model.source_sha256}`"]
    lines += [f"- Repaired: `{MODEL}`, SHA-256 `{repaired.sha256}`"]
    lines += [f"- Method: `{options.method}`: {options.entry.does}"]
    lines += [f"- {line}" for line in supplied(repaired)]
    for title, table in _tables(repaired):
        lines += ["", f"## {title}", "", *table.markdown()]
    lines += ["", "## Options", "", *_options(repaired).markdown()]
    if repaired.result.facts:
        facts = tuple((name, number(value)) for name, value in repaired.result.facts.items())
        lines += ["", "## Facts", "", *Table(("fact", "value"), facts).markdown()]
    if repaired.notes:
        lines += ["", "## Notes", "", *(f"- {printable(note)}" for note in repaired.notes)]
    lines += ["", "## Next", "", *(f"    {step}" for step in next_commands(repaired))]
    return "\n".join(lines) + "\n"


def to_text(repaired: Repaired, places: Sequence[Path] = (), columns: int = 100) -> str:
    """Return what was done, for a terminal.

    Args:
        repaired: It.
        places: Where files were written.
        columns: Width that sentences are wrapped to.
    """
    lines = _wrapped("", sentence(repaired), columns)
    lines += [line for fact in supplied(repaired) for line in _wrapped("  ", fact, columns)]
    for title, table in _tables(repaired):
        lines += ["", f"{title}:", *table.text()]
    if repaired.notes:
        lines += [""]
    lines += [line for note in repaired.notes for line in _wrapped("note: ", note, columns)]
    lines += ["", *(f"written: {printable(str(place))}" for place in places)]
    lines += [f"next: {step}" for step in next_commands(repaired)]
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
            {**asdict(stage), "images_per_second": images_per_second(stage)} for stage in result.stages
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


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): _finite(part) for name, part in value.items()}
    return [_finite(part) for part in value] if isinstance(value, list | tuple) else value


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
            number(images_per_second(stage)),
            number(stage.losses[-1] if stage.losses else None),
        )
        for stage in repaired.result.stages
    )
    yield "Stages", Table(("stage", "time", "images", "images/s", "last loss"), rows)


def _options(repaired: Repaired) -> Table:
    options = options_of(repaired.options.make())
    return Table(("option", "value"), tuple((name, json.dumps(value)) for name, value in options.items()))


def _wrapped(start: str, text: str, columns: int) -> list[str]:
    return textwrap.wrap(
        printable(text),
        columns,
        initial_indent=start,
        subsequent_indent=" " * len(start),
        break_long_words=False,
        break_on_hyphens=False,
    )
