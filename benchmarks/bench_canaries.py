"""Does a check that canaries chose find the real backdoor? Asked of the zoo's networks.

::

    python -m benchmarks.bench_canaries [--data FOLDER] [--only NAME ...] [--kinds KIND ...]

Each network is calibrated as ``guard calibrate --canaries`` would, on its holdout; then the network's own
backdoor, which nothing was chosen by, is tried with every blend rule: expected of clean inputs is fitted on
images of the pool, boundaries are set on 500 images that calibrate. A record a subject is written to
``benchmarks/results/canaries/`` and the table beside it anew with each.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.canaries_table import render
from benchmarks.machine import commit, describe_machine
from benchmarks.zoo.source import as_floats, read_dataset
from benchmarks.zoo.subjects import Subject, load_subject
from calibration.canaries.choice import FUSED, STATISTICS_TRIED, Found, Setting, choose_setting
from calibration.canaries.job import choose
from calibration.canaries.measuring import Rate, found_by, settings_of, together
from calibration.canaries.measuring import Subject as Answers
from calibration.canaries.pool import MOST_FITTED, MOST_TRIGGERED, Pool, lay_out_pool
from calibration.detector_choice import choose_detector
from calibration.evaluation.numbers import Share
from calibration.intake import rows_of
from calibration.options import CalibrateOptions
from calibration.progress import Progress
from calibration.scoring import predict
from calibration.split import Split, split_images
from calibration.subject import read_subject
from calibration.threshold import minimum_images
from guard.detection.superimpose import BLEND_RULES

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "canaries"
NAMES = ("clean", "badnets", "blend", "sig", "source_specific", "gtsrb_clean", "gtsrb_badnets")
KINDS = ("badnets", "blend", "sig")
CALIBRATED = 500
BLENDS = tuple(BLEND_RULES)


def main() -> None:
    """Do what is asked for, and write the table."""
    parser = argparse.ArgumentParser(description="Hold what canaries expect against real backdoors.")
    parser.add_argument(
        "--data", type=Path, default=ROOT / "build" / "data", help="folder with load.py and the npz files"
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", default=NAMES, help="subjects of the zoo")
    parser.add_argument("--kinds", nargs="+", metavar="KIND", default=KINDS, help="canaries to plant")
    parser.add_argument("--overlays", type=int, default=32, help="most overlays")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--choose-again", action="store_true", help="from what the records found; ask nothing"
    )
    options = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    if options.choose_again:
        for path in sorted(RESULTS.glob("*.json")):
            path.write_text(json.dumps(_chosen_again(json.loads(path.read_text())), indent=1) + "\n")
        RESULTS.with_suffix(".md").write_text(render(RESULTS))
        return
    for name in options.only:
        with tempfile.TemporaryDirectory() as folder:
            record = _tried(load_subject(name), options, Path(folder))
        (RESULTS / f"{name}-{options.seed}.json").write_text(json.dumps(record, indent=1) + "\n")
        RESULTS.with_suffix(".md").write_text(render(RESULTS))
        print(name, record["choice"]["chosen"], record["choice"]["why_not"], flush=True)


def _tried(zoo: Subject, asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    dataset = read_dataset(asked.data, zoo.record["data"]["name"])
    np.savez(
        folder / "images.npz",
        images=dataset.holdout_images.transpose(0, 2, 3, 1),
        labels=dataset.holdout_labels,
    )
    options = CalibrateOptions(
        model=zoo.model,
        data=folder / "images.npz",
        out=folder / "out",
        overlays=asked.overlays,
        threads=1,
        device="cpu",
        quiet=True,
    )
    pool, split, calibrated = _laid_out(options, asked.seed)
    rate = Rate(options.frr, options.delta)
    choice = choose(
        pool,
        rate,
        Setting("add", asked.overlays, FUSED),
        kinds=tuple(asked.kinds),
        blends=BLENDS,
        overlays=tuple(count for count in (16, 32, 64, 100) if count <= asked.overlays),
        statistics=STATISTICS_TRIED,
        seed=asked.seed,
    )
    return {
        "subject": zoo.name,
        "attack": zoo.record["attack"],
        "data": zoo.record["data"]["name"],
        "net": zoo.record["net"],
        "seed": asked.seed,
        "trained_on": len(pool.train),
        "held_out": len(pool.held),
        "choice": choice.to_record(),
        "real": _real(zoo, pool, split, calibrated, rate),
        "command": f"python -m benchmarks.bench_canaries --data FOLDER --only {zoo.name} --seed {asked.seed} "
        f"--kinds {' '.join(asked.kinds)} --overlays {asked.overlays}",
        "commit": commit(),
        **describe_machine(("numpy", "scipy", "onnxruntime", "torch")),
    }


def _chosen_again(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record with the setting that is chosen now of what it found."""
    choice = record["choice"]
    if choice["tried"]:
        tried = [_found(one) for one in choice["tried"]]
        chosen = choose_setting(tried, _found(choice["default"]).setting)
        choice["chosen"] = choice["tried"][tried.index(chosen)]
    return record


def _found(one: dict[str, Any]) -> Found:
    shares = {
        kind: [share[key] for key in ("hits", "of", "low", "high")] for kind, share in one["tpr"].items()
    }
    setting = Setting(one["blend"], one["overlays"], tuple(one["statistics"]))
    return Found(setting, {kind: Share(*some) for kind, some in shares.items()}, one["passes_clean"])


def _laid_out(options: CalibrateOptions, seed: int) -> tuple[Pool, Split, np.ndarray]:
    """Return the pool as a calibration has it, and the images that calibrate, shuffled."""
    subject = read_subject(options)
    with (
        subject.open(subject.prepare(subject.images.images[:1]), options) as classifier,
        Progress(len(subject.images), "", quiet=True) as progress,
    ):
        outputs = predict(classifier, subject.images.images, subject.prepare, subject.batch, progress)
    predicted, generator = outputs.argmax(axis=1), np.random.default_rng(seed)
    n_fit = choose_detector(options, len(subject.images), subject.sink.classes).n_fit
    split = split_images(subject.images.images, options.overlays, generator, n_fit=n_fit, predicted=predicted)
    least = minimum_images(options.frr, options.delta)
    pool = lay_out_pool(subject, split, predicted, options, least, generator)
    return pool, split, generator.permutation(split.calibration)


def _real(
    zoo: Subject, pool: Pool, split: Split, calibrated: np.ndarray, rate: Rate
) -> list[dict[str, Any]] | None:
    """Return what each rule finds of the network's own backdoor, by default statistics and by STRIP."""
    if zoo.attack is None:
        return None
    subject, model = pool.subject, pool.subject.source.model
    clean, others = calibrated[:CALIBRATED], calibrated[CALIBRATED:]
    labels = subject.images.labels
    assert labels is not None
    others = others[zoo.attack.applies_to(labels[others])][: 2 * MOST_TRIGGERED]
    stamped = zoo.attack.stamp(as_floats(_first(subject.images.images[others]))).astype(np.float32)
    reached = pool.answers(model, stamped).argmax(axis=1) == zoo.attack.target_of(labels[others])
    rows = [
        pool.train[:MOST_FITTED],
        rows_of(subject.images.images[clean], subject.prepare, subject.signature),
        stamped[reached][:MOST_TRIGGERED],
    ]
    cuts = np.cumsum([len(part) for part in rows])[:-1]
    found = []
    for blend in BLENDS:
        with Progress(0, "", quiet=True) as progress:
            asked = pool.ask(model, blend, np.concatenate(rows), progress)
        fit, calm, triggered = (asked.rows(part) for part in np.split(np.arange(len(asked.predicted)), cuts))
        answers = Answers(fit, calm, {"real": triggered}, pool.overlay_classes)
        for setting in settings_of([blend], sorted({16, len(pool.overlays)}), STATISTICS_TRIED):
            one = together([found_by(setting, answers, rate)])
            found.append({**vars(setting), "tpr": one.tpr["real"].value, "of": one.tpr["real"].of})
    return found


def _first(images: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


if __name__ == "__main__":
    main()
