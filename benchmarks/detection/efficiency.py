"""What share of the bare model's throughput the guarded path turns into model evaluations.

::

    python -m benchmarks.detection.efficiency --data FOLDER [--repeats 3] [--images 1000]

A network of the zoo is calibrated for each detector and served by `guard serve` with policy enforce, a
process of its own; a client sends clean images over gRPC, one a request, 16 under way. In turn with that the
bare model answers the same images in ONNX Runtime in batches of 64, on as many threads: one. An image counts
as 1 + the blends spent on it.

- *By the clock*: (images a second × evaluations an image) / the bare model's images a second. The client and
  whatever else runs has the same cores.
- *By processor time*: the bare model's processor time for as many evaluations / all that the server used.
  What others use is not in it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, get_args

import numpy as np
import onnxruntime as ort

from benchmarks.bench_check import BATCH, CONCURRENCY
from benchmarks.client import send_all
from benchmarks.detection.images import read_pool
from benchmarks.detection.render import RESULTS, write_page
from benchmarks.machine import commit, describe_machine
from benchmarks.processor_time import processor_seconds
from benchmarks.sidecar import Sidecar, sidecar
from benchmarks.zoo.subjects import MODELS
from calibration.calibrate import calibrate
from calibration.options import CalibrateOptions, Detector
from guard.artifact import read_artifact

OUT = Path("build/bench_efficiency")
NETWORKS = {"badnets": "WRN-16-1", "resnet_badnets": "ResNet-18 x 1/8"}
CALIBRATED, SEED, THREADS = 800, 20, 1
DETECTORS: tuple[Detector, ...] = tuple(one for one in get_args(Detector) if one != "auto")


@dataclass(frozen=True)
class Run:
    """Evaluations a second by the clock, and processor seconds of one.

    Attributes:
        passes: Evaluations an image.
    """

    a_second: float
    processor_s: float
    passes: float = 1.0


def main() -> None:
    """Measure every network with every detector, and write the page anew."""
    options = read_options()
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    images = read_pool(options.data, "cifar10").images
    rows = [row for network in NETWORKS for row in of_network(network, images, options)]
    record = {
        "about": about(options),
        "runs": rows,
        "load_average": list(os.getloadavg()),
        "command": f"python -m benchmarks.detection.efficiency --data FOLDER --repeats {options.repeats} "
        f"--images {options.images}",
        "seed": SEED,
        "commit": commit(),
        **describe_machine(("numpy", "onnxruntime", "grpcio")),
    }
    path = RESULTS.with_name(f"{RESULTS.name}_efficiency.json")
    path.write_text(json.dumps(record, indent=1) + "\n")
    write_page()


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure the guarded path's efficiency.")
    parser.add_argument("--data", type=Path, required=True, help="folder with load.py and the npz files")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--images", type=int, default=1000)
    return parser.parse_args()


def of_network(network: str, images: np.ndarray, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for each detector: medians of repeats in which everything ran in turn."""
    calibrated, fresh = images[:CALIBRATED], images[CALIBRATED : CALIBRATED + options.images]
    model = MODELS / network / "model.onnx"
    n_overlays = {name: _calibrate(model, network, name, calibrated) for name in DETECTORS}
    bare, served = list[Run](), {name: list[Run]() for name in DETECTORS}
    with ExitStack() as stack:
        running = {name: stack.enter_context(_serve(name)) for name in DETECTORS}
        for _ in range(options.repeats):
            bare.append(run_bare(model, fresh))
            for name, runs in served.items():
                runs.append(run_served(running[name], network, fresh, n_overlays[name]))
                print(network, name, bare[-1], runs[-1], flush=True)
    return [_row(network, name, bare, runs) for name, runs in served.items()]


def run_bare(model: Path, images: np.ndarray) -> Run:
    """Return what the model alone does, on one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    session.run(None, {name: images[:BATCH]})
    wall, used = time.perf_counter(), time.process_time()
    for first in range(0, len(images), BATCH):
        session.run(None, {name: images[first : first + BATCH]})
    wall, used = time.perf_counter() - wall, time.process_time() - used
    return Run(len(images) / wall, used / len(images))


def run_served(running: Sidecar, network: str, images: np.ndarray, n_overlays: int) -> Run:
    """Return what the guard does; a rejected image, whose answer does not say, counts as all N blends."""
    send_all(running.address, network, images[:BATCH], CONCURRENCY)
    used = processor_seconds(running.process.pid)
    answers, wall = send_all(running.address, network, images, CONCURRENCY)
    used = processor_seconds(running.process.pid) - used
    evaluations = len(answers) + sum(
        n_overlays if answer.passes is None else answer.passes for answer in answers
    )
    return Run(evaluations / wall, used / evaluations, evaluations / len(answers))


def about(options: argparse.Namespace) -> str:
    """Return what the page says above the table."""
    return (
        f"Policy enforce, gRPC, one image a request, {CONCURRENCY} under way, {options.images} clean images, "
        f"model calls on {THREADS} thread, medians of {options.repeats} runs in turn with the bare model's. "
        "An image counts as 1 + its blends. *By the clock* is (images/s × evaluations an image) / bare "
        "images/s, client and other work on the same two cores; *by processor time* is the bare model's time "
        f"for as many evaluations / all the server's (load average at the end: {os.getloadavg()[0]:.1f})."
    )


def _calibrate(model: Path, network: str, detector: Detector, images: np.ndarray) -> int:
    data = OUT / "clean.npz"
    np.savez(data, images=np.rint(images * 255).astype(np.uint8).transpose(0, 2, 3, 1))
    report = calibrate(
        CalibrateOptions(
            model=model,
            data=data,
            out=OUT / detector / network,
            detector=detector,
            seed=SEED,
            threads=THREADS,
            quiet=True,
        )
    )
    return read_artifact(report.artifact).profile.check.n_overlays


def _serve(detector: str) -> Any:
    flags = ("--threads", str(THREADS), "--policy", "enforce")
    return sidecar(OUT / detector, OUT / f"{detector}.log", *flags)


def _row(network: str, detector: str, bare: Sequence[Run], served: Sequence[Run]) -> dict[str, Any]:
    pairs = list(zip(bare, served, strict=True))
    return {
        "model": NETWORKS[network],
        "detector": detector,
        "bare": median(one.a_second for one in bare),
        "checked": median(one.a_second / one.passes for one in served),
        "passes": median(one.passes for one in served),
        "efficiency": median(path.a_second / alone.a_second for alone, path in pairs),
        "by_processor": median(alone.processor_s / path.processor_s for alone, path in pairs),
        "server_ms": median(1000 * one.processor_s for one in served),
        "bare_ms": median(1000 * one.processor_s for one in bare),
    }


if __name__ == "__main__":
    main()
