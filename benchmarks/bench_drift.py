"""What the drift monitor sees of real scores, how soon, and what it costs a request.

`python -m benchmarks.bench_drift` calibrates the demo's model and checks 1,000 images that it was not
calibrated with as they are, and 400 of them with the demo's trigger and changed in other ways: curtailed, as
they are served, and once more in full. Monitors watch streams drawn from these: 10,000 clean inputs, and then
the traffic of each row, for 10,000 inputs at the most. Delays are medians, in inputs from the change on.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry
from scipy.ndimage import gaussian_filter

from benchmarks.demo.__main__ import MODEL, N_CALIBRATION, NAME
from benchmarks.demo.data import load_clean_images
from benchmarks.demo.trigger import stamp
from benchmarks.machine import commit, describe_machine
from calibration.calibrate import calibrate
from calibration.options import CalibrateOptions
from guard.dataplane.drift_counts import DriftCounts
from guard.dataplane.drift_watch import DriftWatch, budget_of
from guard.dataplane.share import Share
from guard.detection.base import Decision
from guard.detection.drift import DriftMonitor, DriftState
from guard.runtime.check_task import Row
from guard.runtime.loader import LoadedModel, RuntimeOptions, load_model
from guard.runtime.slot import ModelSlot

OUT = Path("build/bench_drift")
RESULT = Path(__file__).with_name("results") / "drift.json"
SEED = 20
BEFORE, AFTER = 10_000, 10_000
CHANGED = 400
FULL_SHARE, FALSE_ALARM_RATE, CUSUM_LIMIT = 0.01, 0.001, 12.0  # the settings' defaults

NOTES = (
    "What is not noticed: a rate that is little above the certified one takes more inputs than these, and a",
    "change that leaves the median p-value between 0.31 and 0.69, half a standard deviation, is one that the",
    "CUSUM allows. Scores are watched, not what is answered: blurred images may all be given one class.",
    "",
    "The traffic is resampled from few images, so that delays depend on these.",
)


@dataclass(frozen=True)
class Pool:
    """What the checks of some images found.

    Attributes:
        suspicious: By the check as it is served.
        labels: Class that the model predicts.
        p_values: Exact, of all blends.
    """

    suspicious: list[bool]
    labels: list[int]
    p_values: list[float]


@dataclass(frozen=True)
class Seen:
    """What a monitor made of one stream.

    Attributes:
        alarm: Inputs from the change to the first alarm; None for none.
        word: Inputs to the first finding of the state that is right.
        suspicious: Suspicious inputs to the first alarm.
    """

    alarm: int | None
    word: int | None
    suspicious: int


def main() -> None:
    parser = argparse.ArgumentParser(description="measure the drift monitor")
    parser.add_argument("--streams", type=int, default=10)
    options = parser.parse_args()
    model, images = prepare()
    try:
        pools = {name: asyncio.run(pool_of(model, some)) for name, some in changed(images).items()}
        result = {
            "command": f"python -m benchmarks.bench_drift --streams {options.streams}",
            "commit": commit(),
            "seed": SEED,
            "detector": model.profile.check.detector,
            "certified": budget_of(model.profile).rate,
            **describe_machine(("numpy", "onnxruntime")),
            "pools": {name: describe(pool) for name, pool in pools.items()},
            "streams": dict(streams(model, pools, options.streams)),
            "microseconds_a_row": {str(rows): cost(model, images, rows) for rows in (1, 16)},
        }
    finally:
        model.close()
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    RESULT.with_suffix(".md").write_text(render(result))
    print(render(result))


def prepare() -> tuple[LoadedModel, np.ndarray]:
    """Return the demo's model, calibrated, and images that it was not calibrated with."""
    images, labels, _ = load_clean_images()
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    data = OUT / "clean.npz"
    np.savez(data, images=images[:N_CALIBRATION], labels=labels[:N_CALIBRATION])
    report = calibrate(
        CalibrateOptions(model=MODEL, data=data, out=OUT / "repository" / NAME, seed=SEED, quiet=True)
    )
    fresh = (images[N_CALIBRATION:].astype(np.float32) / 255).transpose(0, 3, 1, 2).copy()
    options = RuntimeOptions(device="cpu", threads=1, max_queue_rows=10_000)
    return load_model(NAME, report.artifact, options), fresh


def changed(images: np.ndarray) -> dict[str, np.ndarray]:
    some = images[:CHANGED]
    noise = 0.05 * np.random.default_rng(SEED).standard_normal(some.shape)
    return {
        "clean": images,
        "triggered": stamp(some),
        "blurred (σ = 1)": gaussian_filter(some, (0, 0, 1, 1)).clip(0, 1),
        "dark (half as bright)": some * np.float32(0.5),
        "noisy (σ = 0.05)": (some + noise).clip(0, 1).astype(np.float32),
    }


async def pool_of(model: LoadedModel, images: np.ndarray) -> Pool:
    wanted = np.ones(len(images), np.bool_)
    served = model.scheduler.submit(images, wanted)
    rows, logits = await served.rows, await served.prediction
    in_full = await model.scheduler.submit(images, wanted, whole=True).rows
    return Pool(
        [row.decision is not Decision.CLEAN for row in rows],
        logits.argmax(axis=1).tolist(),
        [model.detector.p_value(row.evidence, model.clean_values) for row in in_full],
    )


def describe(pool: Pool) -> dict[str, float]:
    return {
        "suspicious": float(np.mean(pool.suspicious)),
        "median_p": float(np.median(pool.p_values)),
        "largest_class_of_suspicious": largest_share(pool),
    }


def largest_share(pool: Pool) -> float:
    counts = np.bincount(np.array(pool.labels)[np.array(pool.suspicious)], minlength=2)
    return float(counts.max() / max(1, counts.sum()))


def streams(model: LoadedModel, pools: Mapping[str, Pool], count: int) -> list[tuple[str, dict[str, Any]]]:
    attack, drift = DriftState.ATTACK, DriftState.DRIFT
    traffic: list[tuple[str, str, float, DriftState]] = [("clean", "clean", 1.0, DriftState.CALM)]
    traffic += [(f"{share:.0%} triggered", "triggered", share, attack) for share in (0.01, 0.05, 0.3, 1.0)]
    traffic += [(f"all {name}", name, 1.0, drift) for name in list(pools)[2:]]
    rows = []
    for number, (name, pool, share, word) in enumerate(traffic):
        generators = [np.random.default_rng([SEED, number, stream]) for stream in range(count)]
        seen = [one_stream(model, pools["clean"], pools[pool], share, word, one) for one in generators]
        rows.append((name, summary(seen, word)))
        print(name, rows[-1][1], flush=True)
    return rows


def one_stream(
    model: LoadedModel,
    clean: Pool,
    other: Pool,
    share: float,
    word: DriftState,
    generator: np.random.Generator,
) -> Seen:
    monitor = DriftMonitor(
        budget_of(model.profile),
        classes=model.profile.output.classes,
        references=model.profile.promise.n_scores,
        false_alarm_rate=FALSE_ALARM_RATE,
        cusum_limit=CUSUM_LIMIT,
    )
    full = Share(FULL_SHARE, generator)
    feed(monitor, clean, generator, full, BEFORE)
    alarm, suspicious = (0 if alarmed(monitor) else None), 0
    for number in range(1, AFTER + 1):
        pool = other if generator.random() < share else clean
        suspicious += feed(monitor, pool, generator, full, 1) if alarm is None else 0
        if alarm is None and alarmed(monitor):
            alarm = number
        if alarm is not None and monitor.finding.state is word:
            return Seen(alarm, number, suspicious)
        if alarm is not None:
            feed(monitor, pool, generator, full, 1)
    return Seen(alarm, None, suspicious)


def alarmed(monitor: DriftMonitor) -> bool:
    return monitor.finding.state is not DriftState.CALM


def feed(monitor: DriftMonitor, pool: Pool, generator: np.random.Generator, full: Share, inputs: int) -> int:
    """Have the monitor see some inputs of a pool; return how many were suspicious."""
    found = 0
    for index in generator.integers(0, len(pool.labels), inputs).tolist():
        found += pool.suspicious[index]
        monitor.checked(pool.suspicious[index], pool.labels[index])
        if full.takes():
            monitor.measured(pool.p_values[index])
    return found


def summary(seen: list[Seen], word: DriftState) -> dict[str, Any]:
    alarms = [one.alarm for one in seen if one.alarm is not None]
    words = [one.word for one in seen if one.word is not None]
    return {
        "state": word.value,
        "streams": len(seen),
        "alarms": len(alarms),
        "inputs_to_alarm": median(alarms) if alarms else None,
        "suspicious_to_alarm": median(one.suspicious for one in seen if one.alarm is not None)
        if alarms
        else None,
        "right": len(words) if word is not DriftState.CALM else len(seen) - len(alarms),
        "inputs_to_right": median(words) if words and word is not DriftState.CALM else None,
    }


def cost(model: LoadedModel, images: np.ndarray, rows: int) -> float:
    """Return the microseconds of processor time that a checked row costs, in requests of so many."""
    counts = DriftCounts(CollectorRegistry())
    never = Share(0.0, np.random.default_rng(SEED))
    watch = DriftWatch(
        ModelSlot(model), never, counts, false_alarm_rate=FALSE_ALARM_RATE, cusum_limit=CUSUM_LIMIT
    )
    found = [Row(True, predicted=True, decision=Decision.CLEAN)] * rows
    logits = np.random.default_rng(SEED).random((rows, model.profile.output.classes), np.float32)
    times = []
    for _ in range(7):
        start = time.process_time()
        for _ in range(20_000 // rows):
            watch.checked(model, found, logits, images[:rows])
        times.append((time.process_time() - start) / 20_000)
    return 1e6 * median(times)


def render(result: dict[str, Any]) -> str:
    lines = [
        "# What the drift monitor sees, how soon, and what it costs",
        "",
        f"The demo's model, detector `{result['detector']}`, certified rate {result['certified']:.2%}; "
        f"`full_check_share` {FULL_SHARE:g}, `drift_false_alarm_rate` {FALSE_ALARM_RATE:g}, "
        f"`drift_cusum_limit` {CUSUM_LIMIT:g}.",
        f"{BEFORE:,} clean inputs, then up to {AFTER:,} of the traffic, drawn with their real scores. "
        f"`{result['command']}`",
        "",
        "| traffic | should be | alarms | inputs to it | suspicious ones | right word | inputs to that |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in result["streams"].items():
        cells = [_cell(row[key]) for key in ("inputs_to_alarm", "suspicious_to_alarm")]
        right = f"{row['right']} of {row['streams']}"
        lines.append(
            f"| {name} | {row['state']} | {row['alarms']} of {row['streams']} | {cells[0]} | {cells[1]} | "
            f"{right} | {_cell(row['inputs_to_right'])} |"
        )
    lines += ["", "| images | suspicious | median p | largest class of the suspicious |", "|---|---|---|---|"]
    for name, pool in result["pools"].items():
        largest = pool["largest_class_of_suspicious"]
        lines.append(f"| {name} | {pool['suspicious']:.1%} | {pool['median_p']:.2f} | {largest:.0%} |")
    lines += ["", *NOTES]
    one, many = result["microseconds_a_row"].values()
    lines += [
        "",
        f"Processor time: {one:.1f} µs a row in requests of one row, {many:.1f} µs in requests of 16.",
    ]
    return "\n".join(lines) + "\n"


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


if __name__ == "__main__":
    main()
