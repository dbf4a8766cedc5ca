"""How well each score of a check tells triggered inputs of the zoo's subjects from clean ones.

::

    python -m benchmarks.bench_detection [--data FOLDER] [--only NAME ...] [--rule add]

All scores come from the same passes over the same overlays. What is expected of clean inputs is fitted on
1,000 of the holdout, boundaries are set on 3,000 others, and rates are measured on 3,000 more and on inputs
with the trigger that the model gives the attacker's label. A record a subject and rule is written to
``benchmarks/results/detection/``, and the tables beside it anew with each.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata

from benchmarks.detection.answers import Answers, Sizes, answers_of
from benchmarks.detection.render import render
from benchmarks.detection.scores import fused_ladder, scores_of
from benchmarks.machine import commit, describe_machine
from benchmarks.zoo.subjects import load_subject, names
from calibration.errors import TooFewImagesError
from calibration.threshold import conformal_rank
from guard.detection.entropy import entropy_of_probabilities
from guard.detection.plan import CheckPlan, default_rounds
from guard.detection.strip import Strip, passes_needed

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "detection"
CACHE = ROOT / "build" / "bench_detection"
RATES = (0.01, 0.001)
DELTA = 0.05
ROUNDS, SHARES = (4, 8), (0.75, 0.93)
"""Of the ladder: blends after which inputs are accepted, and what share of clean ones each round accepts."""


def main() -> None:
    """Do what is asked for, and write the tables."""
    parser = argparse.ArgumentParser(description="Measure the scores of a check.")
    parser.add_argument(
        "--data", type=Path, default=ROOT / "build" / "data", help="folder with load.py and the npz files"
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", default=names(), help="subjects of the zoo")
    parser.add_argument("--rule", default="add", help="how inputs and overlays are blended")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        answers = answers_of(name, options.rule, options.data, Sizes(), options.seed, CACHE)
        subject = load_subject(name).record
        record = {
            "subject": name,
            "attack": subject["attack"],
            "data": subject["data"]["name"],
            "net": subject["net"],
            "rule": options.rule,
            "seed": options.seed,
            **figures(answers),
            "command": f"python -m benchmarks.bench_detection --data FOLDER --only {name} --rule "
            f"{options.rule} --seed {options.seed}",
            "commit": commit(),
            **describe_machine(("numpy", "scipy", "onnxruntime")),
        }
        (RESULTS / f"{name}-{options.rule}-{options.seed}.json").write_text(
            json.dumps(record, indent=1) + "\n"
        )
        RESULTS.with_suffix(".md").write_text(render(RESULTS))
        print(name, {score: one["auroc"] for score, one in record["scores"].items()}, flush=True)


def figures(answers: Answers) -> dict[str, Any]:
    """Return what each score does, and what it costs."""
    scores = {name: _measured(answers, values) for name, values in scores_of(answers).items()}
    fused, passes = fused_ladder(answers, ROUNDS, SHARES)
    whole = scores_of(answers)["fused"]
    scores["fused, accepting early"] = _measured(answers, fused, whole) | _spent(answers, passes)
    scores["strip"] |= _spent(answers, _passes_of_strip(answers))
    return {"overlays": answers.under.shape[1], "sizes": answers.sizes, "scores": scores}


def _measured(answers: Answers, scores: np.ndarray, calibrated: np.ndarray | None = None) -> dict[str, Any]:
    """Return AUROC, and for each rate the false rejections and detections at the boundary certified for it.

    Args:
        answers: Whose rows are which.
        scores: To measure.
        calibrated: Scores that the boundary is set on, where those differ.
    """
    clean, triggered = scores[answers.part(2)], scores[answers.part(3)]
    found: dict[str, Any] = {"auroc": _auroc(clean, triggered) if len(triggered) else None}
    for rate in RATES:
        boundary = _boundary((scores if calibrated is None else calibrated)[answers.part(1)], rate)
        if boundary is not None:
            found[f"frr at {rate:g}"] = float((clean > boundary).mean())
            found[f"tpr at {rate:g}"] = float((triggered > boundary).mean()) if len(triggered) else None
    return found


def _boundary(scores: np.ndarray, rate: float) -> float | None:
    """Return the score above which at most ``rate`` of clean inputs lie, with confidence; None if too few."""
    try:
        rank = conformal_rank(len(scores), rate, DELTA)
    except TooFewImagesError:
        return None
    return float(np.sort(scores)[-rank]) if rank else None


def _spent(answers: Answers, passes: np.ndarray) -> dict[str, Any]:
    triggered = passes[answers.part(3)]
    return {
        "passes clean": float(passes[answers.part(2)].mean()),
        "passes triggered": float(triggered.mean()) if len(triggered) else None,
    }


def _passes_of_strip(answers: Answers) -> np.ndarray:
    """Return what exact curtailment of plain STRIP spends at 1 %."""
    entropies = entropy_of_probabilities(answers.under)
    order = np.argsort(-entropies[answers.part(0)].mean(axis=0), kind="stable")
    ordered = entropies[:, order]
    boundary = _boundary(-ordered[answers.part(1)].mean(axis=1, dtype=np.float64), RATES[0])
    strip = Strip(CheckPlan(default_rounds(ordered.shape[1])), -(boundary or 0.0))
    return passes_needed(ordered, strip)


def _auroc(clean: np.ndarray, triggered: np.ndarray) -> float:
    """Return the chance that a triggered input scores above a clean one, ties counting half."""
    ranks = rankdata(np.concatenate([clean, triggered]))
    above = ranks[len(clean) :].sum() - len(triggered) * (len(triggered) + 1) / 2
    return float(above / (len(clean) * len(triggered)))


if __name__ == "__main__":
    main()
