"""The zoo's table, from its records."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.zoo.table import SUBJECTS

__all__ = ["render"]

HEAD = """# The zoo

Small networks, clean and backdoored, to try scans, repairs and checks on; made for that alone. Made by
`python -m benchmarks.zoo build --data FOLDER`, read by `benchmarks.zoo.subjects.load_subject`. Rates in
percent on images never trained on. ACC* leaves the target class out, as NAD and ARGD count it; RA is the
accuracy on stamped images. "Published" is ACC*/ASR of such a victim in the source its record names.

Schedules are short, for a CPU: the papers train for about 100 epochs. Attacked networks go on from the clean
one's weights at a rate that moves them all, so "epochs" are those on poisoned data alone.

| subject | data, network | poison | ACC | ACC* | ASR | RA | published | against clean | training | remarks |
|---|---|---|---|---|---|---|---|---|---|---|
"""
FAR_FROM_CLEAN, SHORT_OF_PUBLISHED = 0.02, 0.02
CLEAN_LABELLED = ("sig", "clean_label")
"""Attacks whose rate is a share of the target class, as the table's plans have them."""


def render(records: Path) -> str:
    """Return the table of all records in a folder as Markdown."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(records.glob("*.json"))}
    ordered = sorted(
        found.values(), key=lambda record: (record["data"]["name"], record["attack"] is not None)
    )
    return HEAD + "".join(_row(record, found) for record in ordered) + _missing(found)


def _missing(found: Mapping[str, Any]) -> str:
    """Return a list of what is planned and not made."""
    missing = [plan for name, plan in SUBJECTS.items() if name not in found]
    lines = [f"- {plan.name}{': ' if plan.note else ''}{plan.note}\n" for plan in missing]
    return "\nPlanned and not made yet:\n\n" + "".join(lines) if lines else ""


def _row(record: dict[str, Any], found: dict[str, dict[str, Any]]) -> str:
    clean = found.get(record["start"] or "")
    cells = [
        record["name"],
        f"{record['data']['name']}, {record['net']}",
        _poison(record),
        *(_percent(record.get(name)) for name in ("acc", "acc_non_target", "asr", "robust_acc")),
        _published(record),
        _difference(record, clean),
        _training(record),
        "; ".join(remarks(record, clean)),
    ]
    return f"| {' | '.join(cells)} |\n"


def remarks(record: dict[str, Any], clean: dict[str, Any] | None) -> list[str]:
    """Return what falls short of the published figures or of the clean subject, then the record's own note.

    The clean subject is the one that it began with: of the same network and data.
    """
    found = []
    if clean is not None and record["acc"] < clean["acc"] - FAR_FROM_CLEAN:
        found.append("ACC more than 2 points below the clean subject's")
    published = record["published"]
    if published and record["asr"] < published["asr"] - SHORT_OF_PUBLISHED:
        found.append("ASR more than 2 points below the published one")
    if "asr_elsewhere" in record:
        found.append(f"ASR on the other classes {_percent(record['asr_elsewhere'])}")
    return [*found, *([record["note"]] if record["note"] else [])]


def _poison(record: dict[str, Any]) -> str:
    if record["attack"] is None:
        return "–"
    return _percent(record["poison_rate"]) + (" of the class" if record["attack"] in CLEAN_LABELLED else "")


def _training(record: dict[str, Any]) -> str:
    epochs = f"{record['recipe']['epochs']} epochs"
    after = f" from {record['start']}" if record["start"] else ""
    return f"{epochs}{after}, {record['seconds']:.0f} s"


def _published(record: dict[str, Any]) -> str:
    published = record["published"]
    return f"{_percent(published['acc'])} / {_percent(published['asr'])}" if published else "–"


def _difference(record: dict[str, Any], clean: dict[str, Any] | None) -> str:
    if clean is None or record["attack"] is None:
        return "–"
    return f"{100 * (record['acc'] - clean['acc']):+.2f}"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.2f}".rstrip("0").rstrip(".")
