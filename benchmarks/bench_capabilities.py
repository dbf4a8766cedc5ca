"""What each capability tells that blends do not, and which switch themselves on, on the zoo's subjects.

::

    python -m benchmarks.bench_capabilities --data FOLDER [--only NAME ...]

Each is fitted and tried by its own self-test on 400 clean images; the scale of its score comes from 300
others, the boundary for 1 % from 600 more, and rates from 600 fresh ones and up to 200 with the trigger. What
the check itself says of them is taken from the answers that ``benchmarks.bench_detection`` keeps, so that
*fused* is the guard's own score of the same inputs. A record a subject is written to
``benchmarks/results/capabilities/``, and the page beside it anew with each.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import onnx
from jaxtyping import Float64, Int64

from benchmarks.bench_detection import CACHE
from benchmarks.detection.answers import Answers, Asking, answers_of, triggered_images
from benchmarks.detection.capabilities import signature_of
from benchmarks.detection.figures import auroc, boundary_of
from benchmarks.detection.images import Sizes, drawn, read_pool
from benchmarks.detection.network import Network
from benchmarks.detection.scores import measured_of, ordered
from benchmarks.detection.victims import load_victim
from benchmarks.machine import commit, describe_machine
from calibration.capabilities.base import Bench
from calibration.capabilities.switch import switch_on
from calibration.capabilities.table import CAPABILITIES
from calibration.fused_fit import fit_fused, fused_rounds
from guard.detection.entropy import entropy_of_probabilities
from guard.detection.fusion import fit_fusion

RESULTS = Path(__file__).parent / "results" / "capabilities"
SUBJECTS = (
    "all_to_all", "badnets", "blend", "clean_label", "label_smoothed", "low_confidence", "sig",
    "source_specific", "trojan", "wanet",
)  # fmt: skip
FRR = 0.01
PARTS = {"fit": 400, "scale": 300, "calibration": 600, "fresh": 600, "triggered": 200}
TOGETHER = ("scale_up", "teco_lite")
"""Those that need nothing but the model's answers."""

ABOUT = """# Capabilities on the zoo

`python -m benchmarks.bench_capabilities --data FOLDER`; a record of each subject lies in `capabilities/`.
AUROC, and in brackets the share of triggered inputs detected, in %, at a false-rejection rate certified to
be at most 1 % on 600 images (so few put the boundary at a true rate of 0.3 % on average). *Off* is what the
self-test at calibration came to. `fused` is the guard's score of the blends; `+` adds a capability as one
more statistic, `fused + black-box` the two that need nothing but the model's answers. That layers are told by
distances rather than TED's ranks, that TeCo-lite takes a distance, and that SCALE-UP is not standardised by
class was settled while looking at these subjects; which layers are looked at, while looking at them and at
seven others of the zoo."""


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description="Measure the capabilities.")
    parser.add_argument("--data", type=Path, required=True, help="folder with load.py and the npz files")
    parser.add_argument("--only", nargs="+", metavar="NAME", default=SUBJECTS, help="subjects of the zoo")
    options = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        record = record_of(name, options.data)
        (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
        RESULTS.with_suffix(".md").write_text(render())
        print(name, {score: row.get("auroc") for score, row in record["scores"].items()}, flush=True)


def record_of(name: str, data: Path) -> dict[str, Any]:
    """Return what the capabilities do on a subject."""
    victim = load_victim(name)
    pool, sizes = read_pool(data, victim.data), Sizes()
    asking = Asking(victim, pool, drawn(pool, sizes, 0), sizes, "add", 0, CACHE)
    answers = ordered(answers_of(asking))
    rows = _rows(answers)
    images = _images(asking, answers)[rows]
    ends = np.cumsum([0, *_counts(answers)])
    parts = {part: slice(*ends[place : place + 2]) for place, part in enumerate(PARTS)}
    blends = _statistics(answers)[rows]
    model = onnx.load(str(victim.model))
    source, sink = signature_of(model, images.shape[1:], answers.alone.shape[1])
    bench = Bench(model, source, sink, None, images[parts["fit"]], device="cpu", threads=1)
    scores, columns = {"fused": _row(blends, parts)}, {}
    for one in CAPABILITIES.values():
        started = time.process_time()
        switched = switch_on(one, bench, FRR)
        row: dict[str, Any] = {"on": switched.on, "reason": switched.reason, "passes": one.passes}
        if switched.fitted is not None:
            columns[one.name] = switched.fitted.scores(images)[:, None]
            row |= _row(columns[one.name], parts)
            scores[f"fused + {one.name}"] = _row(np.concatenate([blends, columns[one.name]], axis=1), parts)
        scores[one.name] = row | {"seconds": time.process_time() - started}
    for title, names in (("fused + black-box", TOGETHER), ("fused + all", tuple(CAPABILITIES))):
        some = [columns[one] for one in names if one in columns]
        scores[title] = _row(np.concatenate([blends, *some], axis=1), parts)
    return {
        "subject": name,
        "sizes": dict(zip(PARTS, _counts(answers), strict=True)),
        "scores": scores,
        "command": f"python -m benchmarks.bench_capabilities --data FOLDER --only {name}",
        "commit": commit(),
        **describe_machine(("numpy", "scipy", "onnxruntime")),
    }


def _counts(answers: Answers) -> list[int]:
    *clean, triggered = PARTS.values()
    return [*clean, min(triggered, answers.sizes[3])]


def _rows(answers: Answers) -> Int64[np.ndarray, " r"]:
    """Return rows of the answers: to fit, for the scale, to calibrate, fresh, triggered."""
    firsts = [answers.part(part).start for part in range(4)]
    starts = [firsts[0], firsts[0] + PARTS["fit"], *firsts[1:]]
    return np.concatenate(
        [start + np.arange(count) for start, count in zip(starts, _counts(answers), strict=True)]
    )


def _images(asking: Asking, answers: Answers) -> np.ndarray:
    """Return the inputs of the answers."""
    parts, images = asking.parts, asking.pool.images
    clean = images[np.concatenate([parts.fit, parts.calibration, parts.fresh])]
    triggered = triggered_images(asking, Network(asking.victim.model))[: answers.sizes[3]]
    return np.concatenate([clean, triggered])


def _statistics(answers: Answers) -> Float64[np.ndarray, "n s"]:
    """Return the statistics of the guard's score of the blends."""
    fit, entropies = answers.part(0), entropy_of_probabilities(answers.under)
    rounds = fused_rounds(answers.under.shape[1])
    fitted = fit_fused(
        answers.predicted[fit], answers.under[fit], entropies[fit], answers.overlay_classes, rounds
    )
    return fitted.measures.statistics(fitted.statistics, measured_of(fitted, answers, entropies))


def _row(statistics: Float64[np.ndarray, "n s"], parts: dict[str, slice]) -> dict[str, Any]:
    scores = fit_fusion(statistics[parts["scale"]]).scores(statistics)
    clean, triggered = scores[parts["fresh"]], scores[parts["triggered"]]
    boundary = boundary_of(scores[parts["calibration"]], FRR)
    assert boundary is not None
    return {
        "auroc": auroc(clean, triggered),
        "tpr": float((triggered > boundary).mean()),
        "frr": float((clean > boundary).mean()),
    }


def render() -> str:
    """Return the page."""
    records = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    alone = ["fused", *CAPABILITIES]
    fused = ["fused", *(f"fused + {name}" for name in CAPABILITIES), "fused + black-box", "fused + all"]
    passes = ", ".join(f"`{one.name}` {one.passes}" for one in CAPABILITIES.values())
    tables = [_table(records, alone), _table(records, fused)]
    whys = [
        f"- {record['subject']}, `{name}`: {record['scores'][name]['reason']}."
        for record in records
        for name in CAPABILITIES
        if record["scores"][name]["reason"]
    ]
    off = ["**Off, and why**", "\n".join(whys) or "None."]
    return "\n\n".join([ABOUT, f"Passes an input, beside the blends: {passes}.", *tables, *off]) + "\n"


def _table(records: list[dict[str, Any]], names: list[str]) -> str:
    rows = [[record["subject"], *(_cell(record["scores"].get(name)) for name in names)] for record in records]
    found = [
        [one for record in records if (one := record["scores"].get(name)) and "auroc" in one]
        for name in names
    ]
    means = [
        _cell({key: mean(one[key] for one in some) for key in ("auroc", "tpr")}) if some else "–"
        for some in found
    ]
    lines = [["subject", *names], ["---"] * (len(names) + 1), *rows, ["*mean where on*", *means]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(row: dict[str, Any] | None) -> str:
    if row is None or "auroc" not in row:
        return "off"
    return f"{row['auroc']:.3f} ({100 * row['tpr']:.0f})"


if __name__ == "__main__":
    main()
