"""What the check costs in one fixed graph: `guard export triton` against the sidecar, which stops early.

`python -m benchmarks.bench_triton_export` calibrates the demo's model with each detector, exports it, and
measures in ONNX Runtime on this CPU, alternating, as often as `--repeats` says:

- bare: the model alone, batches of 64;
- sidecar: the scheduler in this process, 16 images under way; it stops as soon as it has decided;
- graph: the exported graph, one image a call, and batches of 8.

Clean images are timed; what is said is compared on clean and on triggered ones, none used for calibration.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

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
from guard.detection.base import Decision
from guard.detection.threshold import Policy
from guard.export.judgement import SCORE, VERDICT
from guard.export.triton import TritonOptions, export_triton
from guard.runtime.loader import LoadedModel, RuntimeOptions, load_model
from guard.runtime.score_shift import full_scores

OUT = Path("build/bench_triton_export")
RESULT = Path(__file__).with_name("results") / "triton_export.json"
SEED = 20
N_SCORED = 50
DETECTORS: tuple[Literal["strip", "fused"], ...] = ("strip", "fused")


@dataclass(frozen=True)
class Exported:
    """A detector's artifact, its graph and the size of that."""

    subject: Subject
    session: ort.InferenceSession
    mib: float


def main() -> None:
    options = read_options()
    images, labels, _ = load_clean_images()
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    np.savez(OUT / "clean.npz", images=images[:N_CALIBRATION], labels=labels[:N_CALIBRATION])
    fresh = (images[N_CALIBRATION:].astype(np.float32) / 255).transpose(0, 3, 1, 2).copy()
    made = {name: prepare(name, fresh[: options.images], options.threads) for name in DETECTORS}
    paths: dict[str, Callable[[], Run]] = {"bare": lambda: run_bare(made["strip"].subject)}
    for name, one in made.items():
        paths[f"{name}: sidecar"] = lambda one=one: asyncio.run(run_in_process(one.subject))
        paths[f"{name}: graph, one image"] = lambda one=one: run_graph(one, 1)
        paths[f"{name}: graph, batches of 8"] = lambda one=one: run_graph(one, 8)
    runs: dict[str, list[Run]] = {name: [] for name in paths}
    for repeat in range(options.repeats):
        for name, path in paths.items():
            runs[name].append(path())
            print(f"{repeat + 1}/{options.repeats}  {name:28}{runs[name][-1]}", flush=True)
    compared = {name: compare(one, fresh[: options.compared]) for name, one in made.items()}
    result = summarise(runs, made, compared, options)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    RESULT.with_suffix(".md").write_text(render(result))
    print(render(result))


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="measure the exported graph")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--images", type=int, default=64, help="clean images that are timed")
    parser.add_argument("--compared", type=int, default=1000, help="images that verdicts are compared on")
    parser.add_argument("--threads", type=int, default=0, help="threads of one model call; 0 for one a core")
    return parser.parse_args()


def prepare(detector: Literal["strip", "fused"], images: np.ndarray, threads: int) -> Exported:
    out = OUT / detector / NAME
    report = calibrate(
        CalibrateOptions(
            model=MODEL, data=OUT / "clean.npz", out=out, seed=SEED, quiet=True, detector=detector
        )
    )
    exported = export_triton(
        TritonOptions(report.artifact, OUT / "triton", name=detector, policy=Policy.FLAG)
    )
    path = exported.directory / "model.onnx"
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    subject = Subject(read_artifact(report.artifact), images, threads)
    return Exported(subject, session, path.stat().st_size / 2**20)


def run_graph(one: Exported, batch: int) -> Run:
    subject = one.subject
    name = subject.artifact.profile.input.name
    one.session.run(None, {name: subject.images[:batch]})
    start = time.perf_counter()
    for first in range(0, len(subject.images), batch):
        one.session.run(None, {name: subject.images[first : first + batch]})
    rate = len(subject.images) / (time.perf_counter() - start)
    return Run(rate, rate * (1 + subject.artifact.profile.check.n_overlays))


def compare(one: Exported, clean: np.ndarray) -> dict[str, Any]:
    """Hold the graph's scores against those over all N, and its verdicts against the sidecar's."""
    artifact = one.subject.artifact
    model = load_model(NAME, artifact.directory, RuntimeOptions())
    found: dict[str, Any] = {}
    for kind, images in (("clean", clean), ("triggered", load_trigger().stamp(clean))):
        said = [
            one.session.run([SCORE, VERDICT], {artifact.profile.input.name: images[start : start + 8]})
            for start in range(0, len(images), 8)
        ]
        scores, verdicts = (np.concatenate(column)[:, 0] for column in zip(*said, strict=True))
        flagged = verdicts == "flag"
        by_sidecar = asyncio.run(flagged_by_sidecar(model, images))
        whole = full_scores(model.classifier, model.detector, images[:N_SCORED], max_pairs=64)
        found[kind] = {
            "images": len(images),
            "flagged": int(flagged.sum()),
            "flagged_by_sidecar": int(by_sidecar.sum()),
            "flagged_here_alone": int((flagged & ~by_sidecar).sum()),
            "flagged_there_alone": int((by_sidecar & ~flagged).sum()),
            "largest_score_difference": float(np.abs(scores[:N_SCORED] - whole).max()),
        }
    model.close()
    return found


async def flagged_by_sidecar(model: LoadedModel, images: np.ndarray) -> np.ndarray:
    """Return which images the check that serves, which stops early, finds beyond its boundary."""
    decisions = []
    for start in range(0, len(images), 100):
        part = images[start : start + 100]
        rows = await model.scheduler.submit(part, np.ones(len(part), np.bool_)).rows
        decisions += [row.decision in {Decision.DOUBTFUL, Decision.SUSPICIOUS} for row in rows]
    return np.array(decisions)


def summarise(
    runs: dict[str, list[Run]],
    made: dict[str, Exported],
    compared: dict[str, Any],
    options: argparse.Namespace,
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
    check = made["strip"].subject.artifact.profile.check
    detectors = {
        name: {
            "graph_mib": one.mib,
            "model_mib": MODEL.stat().st_size / 2**20,
            "mean_passes_clean": one.subject.artifact.profile.calibration.mean_passes_clean,
            "certified_frr": one.subject.artifact.profile.promise.certified_frr,
            "sidecar_to_graph": median(
                sidecar.images_per_second / graph.images_per_second
                for sidecar, graph in zip(
                    runs[f"{name}: sidecar"], runs[f"{name}: graph, batches of 8"], strict=True
                )
            ),
            "compared": compared[name],
        }
        for name, one in made.items()
    }
    return {
        "setting": f"WRN-16-1, 32x32, {check.blend}, N = {check.n_overlays}",
        "command": f"python -m benchmarks.bench_triton_export --repeats {options.repeats} "
        f"--images {options.images} --compared {options.compared} --threads {options.threads}",
        "seed": SEED,
        "repeats": options.repeats,
        "images": options.images,
        "paths": paths,
        "detectors": detectors,
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
    sizes = "\n".join(
        f"| {name} | {one['graph_mib']:.2f} | {one['mean_passes_clean']:.1f} "
        f"| {one['sidecar_to_graph']:.1f} |"
        for name, one in result["detectors"].items()
    )
    said = "\n".join(
        f"| {name} | {kind} | {found['images']} | {found['flagged']} | {found['flagged_by_sidecar']} "
        f"| {found['flagged_here_alone']} | {found['flagged_there_alone']} "
        f"| {found['largest_score_difference']:.1e} |"
        for name, one in result["detectors"].items()
        for kind, found in one["compared"].items()
    )
    model = next(iter(result["detectors"].values()))["model_mib"]
    return f"""# What the check costs in one fixed graph

`guard export triton` against the sidecar, which stops as soon as it has decided, both in ONNX Runtime in one
process. {result["setting"]}; {result["images"]} clean images. Median of {result["repeats"]} alternating runs
on {result["machine"]["cpu"]}, {result["machine"]["cores"]} cores, ONNX Runtime
{result["versions"]["onnxruntime"]}. The cores were shared with other work: compare the paths with each other,
not with other tables. `{result["command"]}`

| path | images/s | range | model evaluations/s |
|---|---|---|---|
{rows}

The graph, here in batches of 8, runs all N blends of each image; the sidecar those it needs. The model itself
is {model:.2f} MiB.

| detector | graph, MiB | sidecar's mean blends of a clean image | sidecar's speed over the graph's |
|---|---|---|---|
{sizes}

What the graph flags and what the sidecar flags. STRIP's early acceptance never changes a verdict; the fused
detector's accepts images that look clean after a few blends, which may be beyond the boundary over all N. The
certified false-rejection rate is that over all N, which is the graph's. Scores are compared over all N.

| detector | images | number | graph | sidecar | graph alone | sidecar alone | scores differ by |
|---|---|---|---|---|---|---|---|
{said}
"""


if __name__ == "__main__":
    main()
