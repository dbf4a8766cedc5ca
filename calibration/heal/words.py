"""A healing's result in words and cells, as all reports have them."""

from __future__ import annotations

import shlex
from pathlib import Path

from calibration.heal.gates import GateResult
from calibration.heal.healed import Healed
from calibration.heal.steps import Row
from calibration.wording import number, percentage, seconds_text

__all__ = ["headline", "looked_text", "meaning", "measured_cells", "steps_cells"]

_PLAIN = ("max_anomaly_index", "min_rescan_p_value")
"""Gates whose numbers are no shares of images."""


def headline(healed: Healed) -> str:
    """Return the outcome in two or three words."""
    return {"published": "Healed", "gates failed": "Not healed", "nothing found": "Nothing to heal"}[
        healed.ending
    ]


def meaning(healed: Healed) -> str:
    """Return what the outcome means, in a sentence or two."""
    if healed.ending == "published" and healed.chosen is not None and healed.artifact is not None:
        certified = (
            "" if healed.frr is None else f"; at most {healed.frr:.2%} of clean images are refused, certified"
        )
        version = f"version {healed.artifact.name} of {healed.artifact.parent}"
        return f"{version} was repaired by {healed.chosen.method}{certified}. {_next(healed.artifact)}"
    if healed.ending == "gates failed":
        return (
            "no repair passed the gates named below, so nothing was published. Give more clean images, or "
            "allow other repairs (--method); what was done is kept."
        )
    found = "found nothing" if healed.looked.verdict == "clean" else "could not tell"
    return (
        f"the scan {found}, and there are no suspects, so nothing was repaired or published. Where there is "
        f"other reason to think that there is a backdoor, give --suspects, --trigger or --even-if-clean, or "
        f"look with other --scanners."
    )


def _next(artifact: Path) -> str:
    """Return the command that has a running guard serve an artifact; in front of a model server, too."""
    model = shlex.quote(artifact.resolve().parent.name)
    return (
        f"Have a running guard serve it: `guard swap {model} --version {artifact.name}`; "
        f"back again: `guard rollback {model}`."
    )


def looked_text(healed: Healed) -> str:
    """Return what the scan and the suspects say."""
    looked, suspects = healed.looked, healed.suspects
    labels = f", label {', '.join(map(str, looked.targets))}" if looked.targets else ""
    said = f"scan of the original: {looked.verdict}{labels} ({'; '.join(looked.reasons)})"
    if suspects is None:
        return said
    led = "no label stands out" if suspects["label"] is None else f"led to label {suspects['label']}"
    return f"{said}; {suspects['inputs']} suspects, {led}"


def measured_cells(one: GateResult) -> tuple[str, ...]:
    """Return a gate's cells: name, before, now, interval, limit, verdict."""
    measure = one.measure
    written = number if one.name in _PLAIN else percentage
    interval = "" if measure.low is None or measure.high is None else (
        f"{100 * measure.low:.1f} to {100 * measure.high:.1f}%"
    )  # fmt: skip
    side = "≤" if one.name.startswith("max_") else "≥"
    limit = f"{side} {written(one.limit)}"
    return one.name, written(measure.before), written(measure.value), interval, limit, one.verdict


def steps_cells(row: Row) -> tuple[str, ...]:
    """Return a step's cells: name, state, time."""
    return row.name, row.state, "" if row.seconds is None else seconds_text(row.seconds)
