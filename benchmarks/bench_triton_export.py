"""What the check costs in one fixed graph: `guard export triton` against the sidecar's exact curtailment.

`python -m benchmarks.bench_triton_export` calibrates the demo's model, exports it, and measures in ONNX
Runtime on this CPU, alternating, as often as `--repeats` says:

- bare: the model alone, batches of 64;
- sidecar: the scheduler in this process, 16 images under way; it stops as soon as an image is surely clean;
- fused: the exported graph, one image a call, and batches of 8.

Clean images are timed; verdicts are compared on clean and on triggered ones, neither used for calibration.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime as ort

from benchmarks.bench_check import Run, Subject, run_bare, run_in_process
from benchmarks.demo.__main__ import MODEL, N_CALIBRATION, NAME
from benchmarks.demo.data import load_clean_images
from benchmarks.demo.trigger import load_trigger
from benchmarks.machine import commit, describe_machine
from calibration.calibrate import calibrate
from calibration.options import CalibrateOptions
from guard.artifact import read_artifact
from guard.detection.threshold import Policy
from guard.export.judgement import SCORE, VERDICT
from guard.export.triton import TritonOptions, export_triton
from guard.runtime.loader import RuntimeOptions, load_model
from guard.runtime.probing import take_probe

OUT = Path("build/bench_triton_export")
RESULT = Path(__file__).with_name("results") / "triton_export.json"
SEED = 20
N_COMPARED = 100


def main() -> None:
    options = read_options()
    subject = prepare(options.threads, options.images)
    session = export(subject)
    paths: dict[str, Callable[[], Run]] = {
        "bare": lambda: run_bare(subject),
        "sidecar": lambda: asyncio.run(run_in_process(subject)),
        "fused, one image": lambda: run_fused(session, subject, 1),
        "fused, batches of 8": lambda: run_fused(session, subject, 8),
    }
    runs: dict[str, list[Run]] = {name: [] for name in paths}
    for repeat in range(options.repeats):
        for name, path in paths.items():
            runs[name].append(path())
            print(f"{repeat + 1}/{options.repeats}  {name:20}{runs[name][-1]}", flush=True)
    result = summarise(runs, subject, compare(session, subject), options)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    RESULT.with_suffix(".md").write_text(render(result))
    print(render(result))


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="measure the exported graph")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--images", type=int, default=64, help="clean images that are timed")
    parser.add_argument("--threads", type=int, default=0, help="threads of one model call; 0 for one a core")
    return parser.parse_args()


def prepare(threads: int, count: int) -> Subject:
    images, labels, _ = load_clean_images()
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    data = OUT / "clean.npz"
    np.savez(data, images=images[:N_CALIBRATION], labels=labels[:N_CALIBRATION])
    report = calibrate(
        CalibrateOptions(model=MODEL, data=data, out=OUT / "repository" / NAME, seed=SEED, quiet=True)
    )
    fresh = (images[N_CALIBRATION:][:count].astype(np.float32) / 255).transpose(0, 3, 1, 2).copy()
    return Subject(read_artifact(report.artifact), fresh, threads)


def export(subject: Subject) -> ort.InferenceSession:
    exported = export_triton(
        TritonOptions(subject.artifact.directory, OUT / "triton", policy=Policy.FLAG)
    ).directory
    options = ort.SessionOptions()
    options.intra_op_num_threads = subject.threads
    return ort.InferenceSession(str(exported / "model.onnx"), options, providers=["CPUExecutionProvider"])


def run_fused(session: ort.InferenceSession, subject: Subject, batch: int) -> Run:
    name = subject.artifact.profile.input.name
    session.run(None, {name: subject.images[:batch]})
    start = time.perf_counter()
    for first in range(0, len(subject.images), batch):
        session.run(None, {name: subject.images[first : first + batch]})
    rate = len(subject.images) / (time.perf_counter() - start)
    return Run(rate, rate * (1 + subject.artifact.profile.check.n_overlays))


def compare(session: ort.InferenceSession, subject: Subject) -> dict[str, Any]:
    """Hold scores and verdicts against the sidecar's classifier over all N, clean and triggered."""
    clean = subject.images[:N_COMPARED]
    triggered = load_trigger().stamp(clean)
    profile = subject.artifact.profile
    model = load_model(NAME, subject.artifact.directory, RuntimeOptions())
    found: dict[str, Any] = {}
    for kind, images in (("clean", clean), ("triggered", triggered)):
        sidecar = take_probe(model.classifier, images, profile.check.n_overlays, max_pairs=64)
        parts = [
            session.run([SCORE, VERDICT], {profile.input.name: images[start : start + 8]})
            for start in range(0, len(images), 8)
        ]
        scores, verdicts = (np.concatenate(column)[:, 0] for column in zip(*parts, strict=True))
        flagged = sidecar.mean_entropy_bits < profile.boundary.boundary_bits
        found[kind] = {
            "images": len(images),
            "flagged": int((verdicts == "flag").sum()),
            "verdicts_unlike_the_sidecars": int(((verdicts == "flag") != flagged).sum()),
            "largest_score_difference_bits": float(np.abs(scores + sidecar.mean_entropy_bits).max()),
        }
    model.close()
    return found


def summarise(
    runs: dict[str, list[Run]], subject: Subject, compared: dict[str, Any], options: argparse.Namespace
) -> dict[str, Any]:
    paths = {
        name: {
            "images_per_second": median(run.images_per_second for run in measured),
            "images_per_second_range": [
                min(run.images_per_second for run in measured),
                max(run.images_per_second for run in measured),
            ],
            "evaluations_per_second": median(run.evaluations_per_second for run in measured),
        }
        for name, measured in runs.items()
    }
    profile = subject.artifact.profile
    return {
        "setting": f"WRN-16-1, 32x32, {profile.check.blend}, N = {profile.check.n_overlays}",
        "command": f"python -m benchmarks.bench_triton_export --repeats {options.repeats} "
        f"--images {options.images} --threads {options.threads}",
        "seed": SEED,
        "repeats": options.repeats,
        "images": len(subject.images),
        "mean_passes_clean": profile.calibration.mean_passes_clean,
        "paths": paths,
        "sidecar_to_fused": median(
            sidecar.images_per_second / fused.images_per_second
            for sidecar, fused in zip(runs["sidecar"], runs["fused, batches of 8"], strict=True)
        ),
        "compared": compared,
        "commit": commit(),
        **describe_machine(("numpy", "onnx", "onnxruntime")),
    }


def render(result: dict[str, Any]) -> str:
    rows = "\n".join(
        f"| {name} | {path['images_per_second']:.1f} "
        f"| {path['images_per_second_range'][0]:.1f} to {path['images_per_second_range'][1]:.1f} "
        f"| {path['evaluations_per_second']:.0f} |"
        for name, path in result["paths"].items()
    )
    said = "\n".join(
        f"| {kind} | {found['images']} | {found['flagged']} | {found['verdicts_unlike_the_sidecars']} "
        f"| {found['largest_score_difference_bits']:.1e} |"
        for kind, found in result["compared"].items()
    )
    return f"""# What the check costs in one fixed graph

`guard export triton` against the sidecar's exact curtailment, both in ONNX Runtime in one process.
{result["setting"]}; {result["images"]} clean images. The sidecar spends
{result["mean_passes_clean"]:.1f} blends on a clean image on average, the fused graph all of them on each.
Median of {result["repeats"]} alternating runs on {result["machine"]["cpu"]},
{result["machine"]["cores"]} cores, ONNX Runtime {result["versions"]["onnxruntime"]}. The cores were shared
with other work: compare the paths with each other, not with other tables.
`{result["command"]}`

| path | images/s | range | model evaluations/s |
|---|---|---|---|
{rows}

On clean images the sidecar is {result["sidecar_to_fused"]:.1f} times as fast as the fused graph in batches
of 8 (median of the ratios within one run); a triggered image takes all N blends in both.

What the fused graph says, against the sidecar's classifier over all N:

| images | compared | flagged | verdicts unlike the sidecar's | largest difference of a score, bits |
|---|---|---|---|---|
{said}
"""


if __name__ == "__main__":
    main()
