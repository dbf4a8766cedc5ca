"""Repairs the zoo's victims and writes down what became of each.

::

    python -m benchmarks.bench_repair [--only METHOD ...] [--victims NAME ...] [--images N ...] ...

One run is a victim, a method (``mcr``, or ``mcr-t3`` with options of its own), a number of clean images and
a seed; it makes one JSON in ``benchmarks/results/repair/<victim>/``. Without options it does what the tables
are made of, in order, and skips what is there: it can be stopped at any time, and several processes share
the work. A run that takes more processor time than ``--limit`` is cut and says so in its record. The tables
are made anew with each record, and by ``python -m benchmarks.repair.render``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import commit, describe_machine
from benchmarks.repair.claims import claimed
from benchmarks.repair.extras import with_extras
from benchmarks.repair.limit import TooLongError, processor_limit
from benchmarks.repair.measure import measure
from benchmarks.repair.methods import Method, Run, find_method, plan
from benchmarks.repair.render import render
from benchmarks.repair.triggers import triggers_for
from benchmarks.repair.victims import Victim, dataset_of, lay_out, load_victim, with_triggers
from calibration.repair.base import RepairResult, Sitting, options_of
from calibration.trainable import load_trainable
from guard.errors import GuardError

__all__ = ["main"]

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "repair"
CACHE = ROOT / "build" / "repair_bench"
COMMIT = commit()
"""Of the code that is loaded, whatever is committed while it runs."""
PACKAGES = ("torch", "numpy", "onnx")


def main() -> None:
    """Do what is asked for and is not there yet."""
    options = read_options()
    torch.set_num_threads(options.threads)
    for seed in options.seeds:
        for run in wanted(options):
            method = method_of(run, options)
            path = RESULTS / run.victim / f"{method.name}-{run.images}-{seed}.json"
            lock = CACHE / "locks" / f"{run.victim}-{path.stem}.lock"
            if path.exists() and not options.again:
                continue
            with claimed(lock) as got:
                if got and (options.again or not path.exists()):
                    record = do(run, method, seed, options)
                    keep(record, path)
                    print(in_short(record), flush=True)


def read_options() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description="Repair the zoo's victims.")
    parser.add_argument(
        "--data", type=Path, default=ROOT / "build" / "data", help="folder with load.py and the npz files"
    )
    parser.add_argument("--only", nargs="+", metavar="METHOD", help="repairs or their variants")
    parser.add_argument("--victims", nargs="+", metavar="NAME")
    parser.add_argument("--images", nargs="+", type=int, metavar="N", help="clean images")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="of images and training")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--limit", type=int, default=360, help="processor seconds of a run before it is cut")
    parser.add_argument("--set", nargs="+", default=[], metavar="OPTION=VALUE", help="of the repair, as JSON")
    parser.add_argument("--variant", default="", help="name for what --set makes of the method")
    parser.add_argument("--again", action="store_true", help="also what is there already")
    options = parser.parse_args()
    if bool(options.set) != bool(options.variant):
        parser.error("--set and --variant go together")
    return options


def wanted(options: argparse.Namespace) -> Iterator[Run]:
    """Yield the runs asked for: those of the plan, and beyond it whatever is named in full."""
    planned = [run for run in plan() if _matches(run, options)]
    yield from planned
    if options.only and options.victims:
        for victim in options.victims:
            for name in options.only:
                for images in options.images or [2500]:
                    run = Run(victim, name, images if find_method(name).needs_images else 0)
                    if run not in planned:
                        yield run


def method_of(run: Run, options: argparse.Namespace) -> Method:
    """Return the method of a run, with what the command line changes of it."""
    method = find_method(run.method)
    if not options.set:
        return method
    pairs = [text.split("=", 1) for text in options.set]
    changed = {name: _plain(value) for name, value in pairs}
    variant = "-".join(filter(None, [method.variant, options.variant]))
    return Method(method.repair, variant, {**method.options, **changed}, method.trigger)


def do(run: Run, method: Method, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return the record of one run."""
    victim = load_victim(run.victim, options.data)
    workable, supplies = lay_out(victim, options.data, run.images, seed)
    supplies = with_extras(supplies, method, victim, dataset_of(victim, options.data), seed)
    given = triggers_for(method, victim, supplies, seed, CACHE)
    repair = method.make()
    record = {
        "victim": run.victim,
        "attack": victim.subject.record["attack"],
        "data": victim.subject.record["data"]["name"],
        "net": victim.subject.record["net"],
        "method": method.repair,
        "variant": method.variant,
        "images": run.images,
        "held": len(supplies.held),
        "seed": seed,
        "trigger": method.trigger,
        "scan": given.about,
        "options": options_of(repair),
        "threads": options.threads,
        "model_sha256": workable.source.source_sha256,
        "command": command_of(run, seed, options),
        "commit": COMMIT,
        **describe_machine(PACKAGES),
    }
    started, wall = time.process_time(), time.perf_counter()
    try:
        with processor_limit(options.limit):
            result = repair.repair(
                workable.module,
                with_triggers(supplies, given.triggers),
                generator=torch.Generator().manual_seed(seed),
                sitting=Sitting(),
            )
    except (TooLongError, GuardError) as error:
        spent = time.process_time() - started
        return {**record, "missing": f"{type(error).__name__}: {error}", "processor_seconds": spent}
    took = {
        "processor_seconds": time.process_time() - started,
        "wall_seconds": time.perf_counter() - wall,
    }
    return {**record, **took, **figures(victim, result, took["processor_seconds"])}


def keep(record: dict[str, Any], path: Path) -> None:
    """Write a record, and the tables anew, so that the two agree at any time."""
    with claimed(CACHE / "locks" / "tables.lock", wait=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=1) + "\n")
        RESULTS.with_suffix(".md").write_text(render())


def figures(victim: Victim, result: RepairResult, seconds: float) -> dict[str, Any]:
    """Return what a repair did."""
    before, after = before_of(victim), measure(result.model, victim)
    pairs = zip(before["acc_by_class"], after["acc_by_class"], strict=True)
    return {
        "before": before,
        "after": after,
        "change_by_class": [now - then for then, now in pairs],
        "images_seen": result.images,
        "images_per_second": result.images / seconds,
        "stages": {stage.name: stage.seconds for stage in result.stages},
        "losses": {stage.name: list(stage.losses) for stage in result.stages},
        "facts": dict(result.facts),
        "notes": list(result.notes),
    }


def before_of(victim: Victim) -> dict[str, Any]:
    """Return what the victim does as it is; measured once."""
    trainable = load_trainable(victim.subject.model)
    path = CACHE / "before" / f"{victim.subject.name}-{trainable.source_sha256[:16]}.json"
    with claimed(path.with_suffix(".lock"), wait=True):
        if not path.exists():
            path.write_text(json.dumps(measure(trainable.module, victim)))
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def command_of(run: Run, seed: int, options: argparse.Namespace) -> str:
    """Return the command that makes this record."""
    images = f" --images {run.images}" if run.images else ""
    changed = f" --set {' '.join(options.set)} --variant {options.variant}" if options.set else ""
    return (
        f"python -m benchmarks.bench_repair --data FOLDER --victims {run.victim} --only {run.method}{images} "
        f"--seeds {seed}{changed}"
    )


def in_short(record: dict[str, Any]) -> str:
    """Return a record as a line."""
    name = f"{record['method']}-{record['variant']}" if record["variant"] else record["method"]
    head = f"{record['victim']} {name} {record['images']} {record['seed']}: "
    if "missing" in record:
        return f"{head}{record['missing']}"
    shares = [
        f"{which} {100 * record['before'][which]:.1f} → {100 * record['after'][which]:.1f}"
        for which in ("acc", "acc_non_target", "asr", "robust_acc")
    ]
    return f"{head}{', '.join(shares)}; {record['processor_seconds']:.0f} s"


def _matches(run: Run, options: argparse.Namespace) -> bool:
    return (
        (options.only is None or run.method in options.only or find_method(run.method).repair in options.only)
        and (options.victims is None or run.victim in options.victims)
        and (options.images is None or run.images in options.images)
    )


def _plain(value: str) -> Any:
    try:
        plain = json.loads(value)
    except ValueError:
        return value
    return tuple(plain) if isinstance(plain, list) else plain


if __name__ == "__main__":
    main()
