"""Tables of figures by subject and score, in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import mean
from typing import Any

__all__ = ["NONE", "Record", "mean_of", "percent", "table"]

Record = dict[str, Any]
NONE = "–"


def table(records: Sequence[Record], key: str, shown: Callable[[float], str]) -> str:
    """Return a figure of every score that has it, a line a subject, and the means of the attacked ones."""
    names = score_names(records, key)
    lines = [["subject", *names], ["---"] * (len(names) + 1)]
    lines += [[one["subject"], *(_cell(_value(one, name, key), shown) for name in names)] for one in records]
    lines.append(["*mean*", *(_cell(mean_of(records, name, key), shown) for name in names)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def score_names(records: Sequence[Record], key: str) -> list[str]:
    """Return the scores that any of the records has this figure of, in the records' order."""
    found = [name for one in records for name in one["scores"] if _value(one, name, key) is not None]
    return list(dict.fromkeys(found))


def mean_of(records: Sequence[Record], name: str, key: str) -> float | None:
    """Return the mean of a score's figure over the records that have it; None if there are none."""
    found = [value for one in records if (value := _value(one, name, key)) is not None]
    return mean(found) if found else None


def percent(share: float) -> str:
    """Return a share in percent."""
    return f"{100 * share:.2f}"


def _value(record: Record, name: str, key: str) -> float | None:
    value: float | None = record["scores"].get(name, {}).get(key)
    return value


def _cell(value: float | None, shown: Callable[[float], str]) -> str:
    return NONE if value is None else shown(value)
