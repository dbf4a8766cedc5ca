"""The tables of detection, from the records.

``python -m benchmarks.detection.render`` writes them anew.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

__all__ = ["render"]

NONE = "–"
RESULTS = Path(__file__).parents[1] / "results" / "detection"
ABOUT = """# Detection on the zoo

Networks of [zoo.md](zoo.md), asked by `python -m benchmarks.bench_detection --data FOLDER`; a record of each
lies in `detection/`. All scores come from the same passes over the same overlays, black-box. Triggered inputs
are those that the attack succeeds with. Nothing was chosen on inputs with triggers but the list of
statistics itself, which was settled while looking at nine of these CIFAR-10 networks."""


def render(folder: Path = RESULTS) -> str:
    """Return the page."""
    records = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    parts = [ABOUT]
    for data in sorted({record["data"] for record in records}):
        for rule in sorted({record["rule"] for record in records if record["data"] == data}):
            some = [one for one in records if (one["data"], one["rule"]) == (data, rule)]
            parts.append(f"## {data}, blend `{rule}`, {some[0]['overlays']} overlays")
            parts.extend(_tables(some))
    return "\n\n".join(parts) + "\n"


def _tables(records: Sequence[dict[str, Any]]) -> list[str]:
    backdoored = [one for one in records if one["attack"] is not None]
    calibrated, fresh = records[0]["sizes"][1:3]
    told = [
        ("auroc", "AUROC", lambda value: f"{value:.3f}", backdoored),
        (
            "tpr at 0.01",
            "Detected, %, at a false-rejection rate certified to be at most 1 %",
            _percent,
            backdoored,
        ),
        ("tpr at 0.001", "The same at 0.1 %", _percent, backdoored),
        (
            "frr at 0.01",
            f"Clean inputs rejected, %, of {fresh:,} fresh ones; boundary for 1 % set on {calibrated:,}",
            _percent,
            records,
        ),
        (
            "passes clean",
            "Passes a clean input, the input itself apart",
            lambda value: f"{value:.1f}",
            records,
        ),
    ]
    return [
        f"**{title}**\n\n{_table(some, key, shown)}"
        for key, title, shown, some in told
        if any(key in score for one in some for score in one["scores"].values())
    ]


def _table(records: Sequence[dict[str, Any]], key: str, shown: Callable[[float], str]) -> str:
    names = [name for name in records[0]["scores"] if any(key in one["scores"][name] for one in records)]
    rows = [
        [one["subject"], *(_cell(one["scores"][name].get(key), shown) for name in names)] for one in records
    ]
    means = [
        _cell(mean(values) if (values := _values(records, name, key)) else None, shown) for name in names
    ]
    lines = [["subject", *names], ["---"] * (len(names) + 1), *rows, ["*mean*", *means]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _values(records: Sequence[dict[str, Any]], name: str, key: str) -> list[float]:
    found = [one["scores"][name].get(key) for one in records]
    return [value for value in found if value is not None]


def _cell(value: float | None, shown: Callable[[float], str]) -> str:
    return NONE if value is None else shown(value)


def _percent(value: float) -> str:
    return f"{100 * value:.2f}"


if __name__ == "__main__":
    RESULTS.with_suffix(".md").write_text(render())
