"""The table of canaries, from the records.

``python -m benchmarks.canaries_table`` writes it anew.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["render"]

RESULTS = Path(__file__).with_name("results") / "canaries"
NONE = "–"
ABOUT = """# Canaries on the zoo

Networks of [zoo.md](zoo.md), asked by `python -m benchmarks.bench_canaries --data FOLDER`; a record of each
lies in `canaries/`. Canaries were planted in copies of each network and a setting of the check chosen by
them, on the pool alone, as `guard calibrate --blend auto` does. Then the network's own backdoor was tried
with every rule at the same certified rate, 1 %. All figures in percent of triggered inputs found; fused is
the detector that was the default then: on `gtsrb_badnets` the highest of the statistics, on the others views.

A choice is as good as its canaries. Where the kind of the real backdoor is found among them it carries over
(`sig`); where canaries of its kind are found by no setting (`gtsrb_blend`: blended ones, 0 % everywhere) the
choice is made for the other kinds' sake, and can be the wrong one. So canaries choose only where they are
asked for, and the expected rate is told kind by kind."""


def render(folder: Path = RESULTS) -> str:
    """Return the page."""
    records = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    parts = [ABOUT, "## What canaries chose, and what it finds of the real backdoor", _chosen(records)]
    parts += ["## What canaries expect of each rule, and the real backdoor beside it", _rules(records)]
    parts += ["## Planting", _plantings(records)]
    return "\n\n".join(parts) + "\n"


def _chosen(records: list[dict[str, Any]]) -> str:
    lines = [
        ["network", "chosen", "expected, mean of canaries", "real, as chosen", "real, default", "real, best"],
        ["---"] * 6,
    ]
    for one in records:
        choice = one["choice"]
        chosen = choice["chosen"]
        if chosen is None:
            lines.append([one["subject"], choice["why_not"], NONE, NONE, NONE, NONE])
            continue
        real, default = one["real"], choice["default"]
        lines.append(
            [
                one["subject"],
                f"{chosen['blend']}, N = {chosen['overlays']}, {_statistics(chosen['statistics'], one)}",
                _percent(chosen["mean_tpr"]),
                _percent(_real(real, chosen)),
                _percent(_real(real, default)),
                _percent(None if real is None else max(each["tpr"] for each in real)),
            ]
        )
    return _table(lines)


def _rules(records: list[dict[str, Any]]) -> str:
    blends = ("add", "add_clip", "half_clip", "convex")
    lines = [["network", "triggers", *blends], ["---"] * (len(blends) + 2)]
    for one in records:
        tried = [each for each in one["choice"]["tried"] if _is_default(each, one)]
        for kind in tried[0]["tpr"] if tried else ():
            by_blend = {each["blend"]: each["tpr"][kind]["value"] for each in tried}
            lines.append([one["subject"], kind, *(_percent(by_blend[blend]) for blend in blends)])
        if one["real"] is not None:
            by_blend = {each["blend"]: each["tpr"] for each in one["real"] if _is_default(each, one)}
            lines.append(
                [
                    one["subject"],
                    f"**real: {one['attack']}**",
                    *(_percent(by_blend[blend]) for blend in blends),
                ]
            )
    return _table(lines)


def _plantings(records: list[dict[str, Any]]) -> str:
    lines = [
        ["network", "canary", "success", "accuracy", "counts", "fine-tuning, s of a core", "in all, s"],
        ["---"] * 7,
    ]
    for one in records:
        choice = one["choice"]
        for place, planted in enumerate(choice["canaries"]):
            lines.append(
                [
                    one["subject"],
                    planted["kind"],
                    _percent(planted["asr"]),
                    f"{_percent(planted['accuracy_before'])} to {_percent(planted['accuracy'])}",
                    f"no: {planted['why_not']}" if planted["why_not"] else "yes",
                    f"{choice['planted_seconds']:.0f}" if not place else "",
                    f"{choice['seconds']:.0f}" if not place else "",
                ]
            )
    return _table(lines)


def _is_default(each: dict[str, Any], one: dict[str, Any]) -> bool:
    most = max(tried["overlays"] for tried in one["choice"]["tried"]) if one["choice"]["tried"] else 32
    return bool(each["statistics"] == _default(one) and each["overlays"] == most)


def _real(real: list[dict[str, Any]] | None, setting: dict[str, Any] | None) -> float | None:
    keys = ("blend", "overlays", "statistics")
    for each in real or ():
        if setting is not None and all(each[key] == setting[key] for key in keys):
            return float(each["tpr"])
    return None


def _statistics(names: list[str], one: dict[str, Any]) -> str:
    return "fused" if names == _default(one) else " + ".join(names)


def _default(one: dict[str, Any]) -> list[str] | None:
    """Return the statistics of the default detector at the time of the record."""
    default = one["choice"]["default"]
    return None if default is None else list(default["statistics"])


def _percent(value: float | None) -> str:
    return NONE if value is None else f"{100 * value:.1f}"


def _table(lines: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    RESULTS.with_suffix(".md").write_text(render())
