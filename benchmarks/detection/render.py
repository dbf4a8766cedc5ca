"""The page of detection, from the records.

``python -m benchmarks.detection.render`` writes it anew, its curves too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.detection.curves import draw
from benchmarks.detection.efficiency_report import efficiency_table
from benchmarks.detection.summary import ABOUT, NOTES, claims, overview
from benchmarks.detection.tables import Record, mean_of, percent, table

__all__ = ["read_records", "render", "write_page"]

RESULTS = Path(__file__).parents[1] / "results" / "detection"
CURVES = "curves"


def write_page(folder: Path = RESULTS) -> None:
    """Write the page and its curves."""
    draw(_main(read_records(folder)), folder / CURVES)
    folder.with_suffix(".md").write_text(render(folder))


def read_records(folder: Path = RESULTS) -> list[Record]:
    """Return all records of a folder, in the order of the tables' rows."""
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    return sorted(found, key=lambda one: (one["attack"] is None, one["net"] != "wrn-16-1", one["subject"]))


def render(folder: Path = RESULTS) -> str:
    """Return the page."""
    records = read_records(folder)
    main = _main(records)
    parts = [ABOUT, "## In short", overview(main), claims(main, folder), NOTES]
    for data in _names(main):
        some = [one for one in main if one["data"] == data]
        parts += [
            f"## {data}, blend `add`, {some[0]['overlays']} overlays",
            *_pictures(data),
            *_details(some),
        ]
    parts += _variants(records)
    efficiency = efficiency_table(folder)
    return "\n\n".join([*parts, *efficiency]) + "\n"


def _main(records: Sequence[Record]) -> list[Record]:
    """Return those of the tables: blend ``add``, the first seed, about 30 overlays or one a class."""
    return [one for one in records if (one["rule"], one["seed"]) == ("add", 0) and _usual(one)]


def _usual(record: Record) -> bool:
    return bool(record["overlays"] == {"gtsrb": 43}.get(record["data"], 30))


def _names(records: Sequence[Record]) -> list[str]:
    return sorted({record["data"] for record in records})


def _pictures(data: str) -> list[str]:
    return [
        f"![ROC curves on {data}](detection/{CURVES}/{data}-roc.png)",
        f"![Fused scores on {data}](detection/{CURVES}/{data}-scores.png)",
    ]


def _details(records: Sequence[Record]) -> list[str]:
    backdoored = [one for one in records if one["attack"] is not None]
    calibrated, fresh = records[0]["sizes"][1], records[0]["sizes"][2]
    shown: list[tuple[str, str, Callable[[float], str], Sequence[Record]]] = [
        ("auroc", "AUROC", "{:.3f}".format, backdoored),
        ("tpr at 0.01", "Detected, %, at a false-rejection rate certified at 1 %", percent, backdoored),
        ("tpr at 0.001", "Detected, %, at 0.1 %", percent, backdoored),
        (
            "frr at 0.01",
            f"Clean inputs rejected, %, at 1 %: of {fresh:,} fresh ones and more, see below; "
            f"boundaries set on {calibrated:,}",
            percent,
            records,
        ),
        ("frr at 0.001", "Clean inputs rejected, %, at 0.1 %", percent, records),
        ("passes clean", "Passes a clean input, the input itself apart", "{:.1f}".format, records),
        ("passes triggered", "Passes a triggered input", "{:.1f}".format, backdoored),
        (
            "images per second",
            "Clean inputs a second of one core's time, the prediction itself and all scoring counted",
            "{:.0f}".format,
            records,
        ),
    ]
    return [f"**{title}**\n\n{table(some, key, form)}" for key, title, form, some in shown if some] + [
        _intervals(records)
    ]


def _intervals(records: Sequence[Record]) -> str:
    """Return the measured false-rejection rates of the guard's detector with their intervals."""
    lines = [
        "**False rejections of the guard's detectors at 1 %, with Clopper and Pearson's 95 % interval**",
        "",
    ]
    names = [name for name in ("strip", "fused", "fused, accepting early") if name in records[0]["scores"]]
    lines += [f"| subject | fresh | {' | '.join(names)} |", "|---|---|" + "---|" * len(names)]
    for one in records:
        cells = []
        for name in names:
            row = one["scores"][name]
            low, high = row["frr interval at 0.01"]
            cells.append(f"{percent(row['frr at 0.01'])} ({percent(low)} to {percent(high)})")
        lines.append(f"| {one['subject']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _variants(records: Sequence[Record]) -> list[str]:
    """Return what other numbers of overlays and another seed come to."""
    main = {one["subject"]: one for one in _main(records)}
    parts = []
    numbers = [one for one in records if one["seed"] == 0 and not _usual(one)]
    if numbers:
        parts += ["## Other numbers of overlays", _by_number([*numbers, *_like(numbers, main)])]
    seeded = [one for one in records if one["seed"] != 0 and _usual(one)]
    if seeded:
        parts += ["## Another draw of overlays and images", _by_seed([*_like(seeded, main), *seeded])]
    return parts


def _like(records: Sequence[Record], main: dict[str, Record]) -> list[Record]:
    return [main[name] for name in sorted({one["subject"] for one in records}) if name in main]


def _by_number(records: Sequence[Record]) -> str:
    names = ("strip", "stratified", "fused", "fused, accepting early")
    head = " | ".join(f"{name}: AUROC, detected, passes" for name in names)
    lines = [f"| subject | N | {head} |", "|---|---|" + "---|" * len(names)]
    for one in sorted(records, key=lambda one: (one["subject"], one["overlays"])):
        cells = [_short(one["scores"][name]) for name in names]
        lines.append(f"| {one['subject']} | {one['overlays']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _short(row: dict[str, Any]) -> str:
    return f"{row['auroc']:.3f}, {percent(row['tpr at 0.01'])} %, {row['passes clean']:.1f}"


def _by_seed(records: Sequence[Record]) -> str:
    seeds = sorted({one["seed"] for one in records})
    lines = ["| score | " + " | ".join(f"seed {seed}: AUROC, detected, %" for seed in seeds) + " |"]
    lines.append("|---|" + "---|" * len(seeds))
    for name in records[0]["scores"]:
        cells = []
        for seed in seeds:
            some = [one for one in records if one["seed"] == seed]
            auroc, detected = mean_of(some, name, "auroc"), mean_of(some, name, "tpr at 0.01")
            cells.append("–" if auroc is None or detected is None else f"{auroc:.3f}, {percent(detected)}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    subjects = ", ".join(sorted({one["subject"] for one in records}))
    return "\n".join([f"Means over {subjects}.", "", *lines])


if __name__ == "__main__":
    write_page()
