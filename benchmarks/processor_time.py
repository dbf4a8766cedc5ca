"""Processor time of processes and all that they started, from ``/proc``."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["processor_seconds"]

_TICK_S = 1.0 / os.sysconf("SC_CLK_TCK")


def processor_seconds(pid: int) -> float:
    """Return the seconds that a process and its living descendants have computed so far."""
    children: dict[int, list[int]] = {}
    used: dict[int, float] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile
        own = int(stat.parent.name)
        children.setdefault(int(fields[1]), []).append(own)
        used[own] = (int(fields[11]) + int(fields[12])) * _TICK_S
    family, total = [pid], 0.0
    while family:
        one = family.pop()
        total += used.get(one, 0.0)
        family += children.get(one, [])
    return total
