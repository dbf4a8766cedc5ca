"""How well each score of a check tells triggered inputs of the zoo's subjects from clean ones.

::

    python -m benchmarks.bench_detection --data FOLDER [--only NAME ...] [--rule add] [--seed 0] [--published]

All scores come from the same passes over the same overlays. What is expected of clean inputs is fitted on
1,000 clean images, boundaries are set on 3,000 others, and rates are measured on 3,000 more, those of the
guard's detector on all that are left, and on inputs with the trigger that the model gives the attacker's
label. Answers are kept in
``build/bench_detection``. A record a subject, rule and seed is written to ``benchmarks/results/detection/``,
and the page beside it anew with each; ``python -m benchmarks.detection.render`` writes the page alone.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from benchmarks.detection import capabilities, peer, published
from benchmarks.detection.answers import Answers, Asking, answers_of
from benchmarks.detection.figures import figures
from benchmarks.detection.images import Sizes, drawn, read_pool
from benchmarks.detection.more import decisions
from benchmarks.detection.network import Network
from benchmarks.detection.render import write_page
from benchmarks.detection.scores import Scored, ordered, scored
from benchmarks.detection.victims import VICTIMS, load_victim
from benchmarks.machine import commit, describe_machine
from benchmarks.zoo.subjects import load_subject
from calibration.fused_fit import ACCEPTED_EARLY

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "detection"
CACHE = ROOT / "build" / "bench_detection"
TIMED = 40


def main() -> None:
    """Do what is asked for, and write the tables."""
    options = read_options()
    RESULTS.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        asking = asking_of(name, options)
        if options.art == "bundle":
            peer.write_bundle(asking)
            continue
        record = record_of(asking, with_published=options.published)
        path = RESULTS / f"{name.replace(' ', '_')}-{options.rule}-{options.overlays}-{options.seed}.json"
        path.write_text(json.dumps(record, indent=1) + "\n")
        write_page(RESULTS)
        print(name, {score: one["auroc"] for score, one in record["scores"].items()}, flush=True)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure the scores of a check.")
    parser.add_argument("--data", type=Path, required=True, help="folder with load.py and the npz files")
    parser.add_argument("--only", nargs="+", metavar="NAME", default=VICTIMS, help="subjects of the zoo")
    parser.add_argument("--rule", default="add", help="how inputs and overlays are blended")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--overlays", type=int, default=30, help="N; one of each class at least")
    parser.add_argument("--published", action="store_true", help="measure STRIP as published, too")
    parser.add_argument("--art", choices=("bundle",), help="only write what ART is asked")
    return parser.parse_args()


def asking_of(name: str, options: argparse.Namespace) -> Asking:
    victim = load_victim(name)
    pool = read_pool(options.data, victim.data)
    sizes = Sizes(overlays=options.overlays)
    parts = drawn(pool, sizes, options.seed)
    return Asking(victim, pool, parts, sizes, options.rule, options.seed, CACHE)


def record_of(asking: Asking, *, with_published: bool) -> dict[str, Any]:
    """Return everything that is measured of a subject."""
    answers = ordered(answers_of(asking))
    found = scored(answers)
    rows = figures(answers, found, lambda detector: decisions(asking, answers, detector))
    others = {
        published.NAME: published.as_published(asking, ask=with_published),
        peer.NAME: peer.row_of_art(asking),
    }
    rows |= {name: row for name, row in others.items() if row is not None}
    rows |= capabilities.layer_rows(asking, answers)
    speed = _speed(asking, answers, found)
    for row in rows.values():
        if "passes clean" in row and "images per second" not in row:
            row["images per second"] = 1 / (speed["alone"] + row["passes clean"] * speed["a pass"])
    subject = load_subject(asking.victim.network).record
    command = f"python -m benchmarks.bench_detection --data FOLDER --only {json.dumps(asking.victim.name)}"
    return {
        "subject": asking.victim.name,
        "attack": subject["attack"],
        "data": asking.victim.data,
        "net": subject["net"],
        "rule": asking.rule,
        "seed": asking.seed,
        "overlays": answers.under.shape[1],
        "sizes": answers.sizes,
        "early": {str(passes): share for passes, share in ACCEPTED_EARLY.items()},
        "seconds": speed,
        "scores": rows,
        "command": f"{command} --rule {asking.rule} --overlays {asking.sizes.overlays} --seed {asking.seed}",
        "commit": commit(),
        **describe_machine(("numpy", "scipy", "onnxruntime")),
    }


def _speed(asking: Asking, answers: Answers, found: Scored) -> dict[str, float]:
    """Return the processor seconds of an image, and of a blend: made, asked and measured."""
    images, overlays = asking.pool.images[asking.parts.fresh[:TIMED]], asking.pool.images[answers.overlays]
    alone, under = Network(asking.victim.model).seconds_a_pass(images, overlays, asking.rule)
    part = slice(answers.part(2).start, answers.part(2).start + TIMED)
    measures, entropies = found.detector.measures, found.measured[part, :, 0]
    started = time.process_time()
    measures.of_inputs(answers.predicted[part], answers.under[part], entropies)
    each = (time.process_time() - started) / entropies.size
    return {"alone": alone, "a pass": under + each}


if __name__ == "__main__":
    main()
