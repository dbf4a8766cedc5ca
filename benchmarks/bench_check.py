"""What the check costs: the serving path against the bare model and a straightforward STRIP, in one run.

`python -m benchmarks.bench_check` calibrates the demo's model, then measures, alternating, as often as
`--repeats` says:

- bare: the model alone in ONNX Runtime, batches of 64 — the physical limit;
- in process: the scheduler with 16 images under way, as the server runs it, without gRPC;
- served: `guard serve` as a process of its own, 16 requests of one image under way over gRPC;
- numpy: a plain STRIP, image by image: blend in numpy, one model call for the image and its N blends, entropy
  in numpy — with the same model, overlays, threads and verdicts.

Efficiency is (model evaluations a second on the path) / (the bare model's images a second): an image costs
its own evaluation and one for each blend. Client and server share the machine's cores, so "served" pays for
both.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime as ort

from benchmarks.client import send_all
from benchmarks.demo.__main__ import MODEL, N_CALIBRATION, NAME
from benchmarks.demo.data import load_clean_images
from benchmarks.machine import commit, describe_machine
from benchmarks.sidecar import sidecar
from calibration.calibrate import calibrate
from calibration.options import CalibrateOptions
from guard.artifact import Artifact, read_artifact
from guard.detection.entropy import entropy_of_logits
from guard.detection.superimpose import superimpose
from guard.runtime.loader import RuntimeOptions, load_model

OUT = Path("build/bench_check")
RESULT = Path(__file__).with_name("results") / "bench_check.json"
CONCURRENCY = 16
BATCH = 64
SEED = 20


@dataclass(frozen=True)
class Run:
    """One measurement.

    Attributes:
        evaluations_per_second: Model evaluations: each image's own and one for each blend.
        resident_mib: Memory of the serving process, where there is one.
    """

    images_per_second: float
    evaluations_per_second: float
    resident_mib: float | None = None


@dataclass(frozen=True)
class Subject:
    """What is measured: an artifact, images nobody calibrated with, threads of one model call."""

    artifact: Artifact
    images: np.ndarray
    threads: int

    def bare_session(self) -> ort.InferenceSession:
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        return ort.InferenceSession(MODEL.read_bytes(), options, providers=["CPUExecutionProvider"])


def main() -> None:
    options = read_options()
    subject = prepare(options.threads)
    few = replace(subject, images=subject.images[: options.numpy_images])
    paths: dict[str, Callable[[], Run]] = {
        "bare": lambda: run_bare(subject),
        "in_process": lambda: asyncio.run(run_in_process(subject)),
        "served": lambda: run_served(subject),
        "numpy": lambda: run_numpy(few),
    }
    runs: dict[str, list[Run]] = {name: [] for name in paths}
    for repeat in range(options.repeats):
        for name, path in paths.items():
            runs[name].append(path())
            print(f"{repeat + 1}/{options.repeats}  {name:12}{runs[name][-1]}", flush=True)
    result = summarise(runs, subject, options.repeats)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    RESULT.with_suffix(".md").write_text(render(result))
    print(render(result))


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="measure the serving path")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="threads of one model call; 0 for one a core")
    parser.add_argument("--numpy-images", type=int, default=200, help="images the plain STRIP is timed on")
    return parser.parse_args()


def prepare(threads: int) -> Subject:
    images, labels, _ = load_clean_images()
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    data = OUT / "clean.npz"
    np.savez(data, images=images[:N_CALIBRATION], labels=labels[:N_CALIBRATION])
    report = calibrate(
        CalibrateOptions(model=MODEL, data=data, out=OUT / "repository" / NAME, seed=SEED, quiet=True)
    )
    fresh = (images[N_CALIBRATION:].astype(np.float32) / 255).transpose(0, 3, 1, 2).copy()
    return Subject(read_artifact(report.artifact), fresh, threads)


def run_bare(subject: Subject) -> Run:
    session, name = subject.bare_session(), subject.artifact.profile.input.name
    session.run(None, {name: subject.images[:BATCH]})
    start = time.perf_counter()
    for first in range(0, len(subject.images), BATCH):
        session.run(None, {name: subject.images[first : first + BATCH]})
    rate = len(subject.images) / (time.perf_counter() - start)
    return Run(rate, rate)


async def run_in_process(subject: Subject) -> Run:
    model = load_model(NAME, subject.artifact.directory, RuntimeOptions(threads=subject.threads or None))
    gate, wanted = asyncio.Semaphore(CONCURRENCY), np.ones(1, np.bool_)

    async def passes_of(image: np.ndarray) -> int:
        async with gate:
            rows = await model.scheduler.submit(image[None], wanted).rows
            return rows[0].evidence.passes

    start = time.perf_counter()
    passes = await asyncio.gather(*(passes_of(image) for image in subject.images))
    seconds = time.perf_counter() - start
    await asyncio.to_thread(model.close)
    return rates(passes, seconds)


def run_served(subject: Subject) -> Run:
    flags = ["--threads", str(subject.threads)] if subject.threads else []
    with sidecar(OUT / "repository", OUT / "sidecar.log", *flags) as running:
        send_all(running.address, NAME, subject.images[:BATCH], CONCURRENCY)
        answers, seconds = send_all(running.address, NAME, subject.images, CONCURRENCY)
        resident = resident_mib(running.process.pid)
    n_overlays = subject.artifact.profile.check.n_overlays
    run = rates([answer.passes or n_overlays for answer in answers], seconds)
    return replace(run, resident_mib=resident)


def run_numpy(subject: Subject) -> Run:
    profile, overlays = subject.artifact.profile, subject.artifact.overlays
    session, name = subject.bare_session(), profile.input.name
    session.run(None, {name: overlays})
    start = time.perf_counter()
    for image in subject.images:
        blends = superimpose(image[None], overlays, profile.check.blend_rule, profile.input.value_range)[0]
        logits = session.run(None, {name: np.concatenate([image[None], blends])})[0]
        entropy_of_logits(logits[1:]).mean()
    seconds = time.perf_counter() - start
    return rates([len(overlays)] * len(subject.images), seconds)


def rates(passes: list[int], seconds: float) -> Run:
    return Run(len(passes) / seconds, (len(passes) + sum(passes)) / seconds)


def resident_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def summarise(runs: dict[str, list[Run]], subject: Subject, repeats: int) -> dict[str, Any]:
    bare = median(run.evaluations_per_second for run in runs["bare"])
    paths = {}
    for name, measured in runs.items():
        images = [run.images_per_second for run in measured]
        shares = [run.evaluations_per_second / bare for run in measured]
        paths[name] = {
            "images_per_second": median(images),
            "images_per_second_range": [min(images), max(images)],
            "efficiency": median(shares),
            "efficiency_range": [min(shares), max(shares)],
        }
    profile = subject.artifact.profile
    return {
        "setting": f"WRN-16-1, 32x32, {profile.check.blend}, N = {profile.check.n_overlays}",
        "command": f"python -m benchmarks.bench_check --repeats {repeats} --threads {subject.threads}",
        "seed": SEED,
        "repeats": repeats,
        "images": len(subject.images),
        "concurrency": CONCURRENCY,
        "mean_passes_clean": profile.calibration.mean_passes_clean,
        "paths": paths,
        "server_resident_mib": max(run.resident_mib or 0.0 for run in runs["served"]),
        "commit": commit(),
        **describe_machine(("numpy", "onnxruntime", "grpcio")),
    }


def render(result: dict[str, Any]) -> str:
    rows = "\n".join(
        f"| {name} | {path['images_per_second']:.0f} | {path['efficiency']:.2f} "
        f"| {path['efficiency_range'][0]:.2f} to {path['efficiency_range'][1]:.2f} |"
        for name, path in result["paths"].items()
    )
    return f"""# What the check costs

{result["setting"]}; {result["images"]} clean images, {result["concurrency"]} under way,
{result["mean_passes_clean"]:.1f} blends a clean image on average.
Median of {result["repeats"]} alternating runs on {result["machine"]["cpu"]},
{result["machine"]["cores"]} cores.
`{result["command"]}`

| path | images/s | efficiency | range |
|---|---|---|---|
{rows}

Efficiency: model evaluations a second on the path / images a second of the bare model.
`numpy` is a plain STRIP that runs all N blends of one image in one call.
Resident memory of the server: {result["server_resident_mib"]:.0f} MiB.
"""


if __name__ == "__main__":
    main()
