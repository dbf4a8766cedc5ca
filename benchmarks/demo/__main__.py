"""The demo: calibrate a backdoored classifier, serve it guarded, attack it, heal it, and show what happened.

Run it as `make demo`. Everything it needs is in the repository: a WRN-16-1 trained on CIFAR-10 with a
BadNets trigger, and 3,000 real images it was never trained on. It leaves `build/demo/report.json` and
`build/demo/demo.png`.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from benchmarks.client import Answer, send_all
from benchmarks.demo.data import load_clean_images
from benchmarks.demo.loop import CLIENTS, close_the_loop, guard
from benchmarks.demo.picture import draw
from benchmarks.demo.trigger import load_trigger
from benchmarks.sidecar import sidecar
from guard.artifact import Artifact, read_artifact
from guard.artifact.detector import detector_of
from guard.runtime.opening import RuntimeOptions, open_classifier
from guard.runtime.score_shift import full_scores

MODEL = Path(__file__).with_name("model.onnx")
OUT = Path("build/demo")
SOCKET = OUT / "admin.sock"
NAME = "demo"
SEED = 20
N_CALIBRATION = 2000
CONCURRENCY = 16
N_LATENCY = 200
PAIRS = 64


@dataclass(frozen=True)
class Traffic:
    """What the client sends: images no one has calibrated with, and the same ones triggered.

    Attributes:
        clean: float32 n c h w in [0, 1].
        triggered: The images whose label is not the attacker's, stamped.
        triggered_labels: Their true labels.
    """

    clean: np.ndarray
    labels: np.ndarray
    triggered: np.ndarray
    triggered_labels: np.ndarray
    class_names: list[str]


def main() -> None:
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    traffic = prepare()
    unguarded = Unguarded.measure(traffic)
    calibrate()
    artifact = read_artifact(OUT / "repository" / NAME / "1")
    print(
        f"\nServing the model behind its check, and sending it {len(traffic.clean)} clean and "
        f"{len(traffic.triggered)} triggered images over gRPC …\n"
    )
    flags = ["--config", str(write_settings())]
    with sidecar(OUT / "repository", OUT / "sidecar.log", *flags) as running:
        send_all(running.address, NAME, traffic.clean[:64], CONCURRENCY)
        alone, _ = send_all(running.address, NAME, traffic.clean[:N_LATENCY], 1)
        clean, clean_seconds = send_all(running.address, NAME, traffic.clean, CONCURRENCY)
        triggered, _ = send_all(running.address, NAME, traffic.triggered, CONCURRENCY)
        report = summarise(traffic, unguarded, artifact, clean, triggered, alone, clean_seconds)
        show(report, clean, triggered)
        print(
            f"\nHealing the model, while {CLIENTS} clients go on asking, and swapping it in …\n", flush=True
        )
        loop = close_the_loop(
            running.address,
            f"unix:{SOCKET}",
            NAME,
            OUT / "repository" / NAME,
            OUT / "clean.npz",
            OUT,
            (traffic.clean, traffic.triggered),
        )
    guard("audit", "verify", str(OUT / "audit"))
    report |= loop.summary(traffic.labels, traffic.triggered_labels, load_trigger().target_label)
    (OUT / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    draw(
        OUT / "demo.png",
        traffic,
        clean,
        triggered,
        scores(artifact, traffic.clean),
        scores(artifact, traffic.triggered),
        artifact.profile.fused.boundary.boundary,
    )
    show_loop(report, loop.digests)
    missed = [name for name, kept in promises(report).items() if not kept]
    if missed:
        sys.exit(f"the demo does not show what it must: {', '.join(missed)}")


def promises(report: dict[str, Any]) -> dict[str, bool]:
    """Return whether each thing the demo is there to show holds."""
    frr, certified = report["frr"], report["frr_certified"]
    return {
        "attack success rate at least 95 % without the guard": report["asr_unguarded"] >= 0.95,
        "false rejections certified and measured at 1 % or less": certified <= 0.01 and frr <= 0.01,
        "false acceptances at most 1 %": report["far"] <= 0.01,
        "mean passes well below N": report["mean_passes_clean"] <= report["n_overlays"] / 2,
        "attack success rate at most 5 % on the healed model": report["asr_healed"] <= 0.05,
        "triggered images get their true class": report["robust_acc_healed"] >= report["acc"] - 0.05,
        "no request failed while versions were swapped": report["load_failures"] == 0,
        "the rollback brought the first version back": len(set(report["digests"])) == 2
        and report["digests"][0] == report["digests"][2],
    }


def prepare() -> Traffic:
    """Split the committed images: the first for calibration, the rest for the client to send."""
    images, labels, names = load_clean_images()
    np.savez_compressed(OUT / "clean.npz", images=images[:N_CALIBRATION], labels=labels[:N_CALIBRATION])
    held_out = (images[N_CALIBRATION:].astype(np.float32) / 255).transpose(0, 3, 1, 2).copy()
    held_labels = labels[N_CALIBRATION:]
    trigger = load_trigger()
    victims = held_labels != trigger.target_label
    return Traffic(held_out, held_labels, trigger.stamp(held_out[victims]), held_labels[victims], names)


@dataclass(frozen=True)
class Unguarded:
    """The bare model's accuracy and attack success rate."""

    acc: float
    asr: float

    @classmethod
    def measure(cls, traffic: Traffic) -> Unguarded:
        session = ort.InferenceSession(MODEL.read_bytes(), providers=["CPUExecutionProvider"])
        target = load_trigger().target_label
        clean, triggered = (
            session.run(None, {"images": images})[0].argmax(axis=1)
            for images in (traffic.clean, traffic.triggered)
        )
        return cls(float((clean == traffic.labels).mean()), float((triggered == target).mean()))


def calibrate() -> None:
    command = [
        sys.executable,
        "-m",
        "guard.cli",
        "calibrate",
        "--model",
        str(MODEL),
        "--data",
        str(OUT / "clean.npz"),
    ]
    command += ["--frr", "0.01", "--seed", str(SEED), "--out", str(OUT / "repository" / NAME)]
    print(f"$ guard calibrate {shlex.join(command[4:])}", flush=True)
    subprocess.run(command, check=True)


def write_settings() -> Path:
    """Write what `guard serve` is told beside its ports: an admin face, and records of what happens."""
    settings = OUT / "guard.toml"
    settings.write_text(
        f"""admin_socket = "{SOCKET}"
state_dir = "{OUT / "state"}"
audit_log = "{OUT / "audit" / "audit.jsonl"}"
quarantine_dir = "{OUT / "quarantine"}"
"""
    )
    return settings


def scores(artifact: Artifact, images: np.ndarray) -> np.ndarray:
    """Return the score over all N overlays, for the picture; the sidecar stops earlier."""
    detector = detector_of(artifact)
    classifier, _ = open_classifier(artifact, detector, RuntimeOptions(device="cpu"))
    with classifier:
        parts = [
            full_scores(classifier, detector, images[start : start + PAIRS], max_pairs=PAIRS)
            for start in range(0, len(images), PAIRS)
        ]
    return np.concatenate(parts)


def summarise(
    traffic: Traffic,
    unguarded: Unguarded,
    artifact: Artifact,
    clean: list[Answer],
    triggered: list[Answer],
    alone: list[Answer],
    clean_seconds: float,
) -> dict[str, Any]:
    n_overlays = artifact.profile.check.n_overlays
    right = [answer.label == label for answer, label in zip(clean, traffic.labels, strict=True)]
    target = load_trigger().target_label
    milliseconds = np.array([answer.seconds for answer in alone]) * 1e3
    return {
        "acc": unguarded.acc,
        "acc_guarded": float(np.mean(right)),
        "asr_unguarded": unguarded.asr,
        "asr_guarded": float(np.mean([answer.label == target for answer in triggered])),
        "frr": float(np.mean([answer.rejected for answer in clean])),
        "frr_certified": artifact.profile.promise.certified_frr,
        "far": float(np.mean([not answer.rejected for answer in triggered])),
        "mean_passes_clean": float(np.mean([answer.passes or n_overlays for answer in clean])),
        "n_overlays": n_overlays,
        "detector": artifact.profile.check.detector,
        "blend": artifact.profile.check.blend,
        "p50_ms": float(np.percentile(milliseconds, 50)),
        "p99_ms": float(np.percentile(milliseconds, 99)),
        "latency_concurrency": 1,
        "images_per_second": len(clean) / clean_seconds,
        "throughput_concurrency": CONCURRENCY,
        "n_clean": len(clean),
        "n_triggered": len(triggered),
        "n_calibration": N_CALIBRATION,
    }


def show(report: dict[str, Any], clean: list[Answer], triggered: list[Answer]) -> None:
    print(f"{'':12}{'sent':>8}{'accepted':>10}{'rejected':>10}")
    for name, answers in (("clean", clean), ("triggered", triggered)):
        rejected = sum(answer.rejected for answer in answers)
        print(f"{name:12}{len(answers):8}{len(answers) - rejected:10}{rejected:10}")
    print(
        f"""
Without the guard   accuracy {report["acc"]:.1%}, attack success rate {report["asr_unguarded"]:.1%}
With the guard      accuracy {report["acc_guarded"]:.1%}, attack success rate {report["asr_guarded"]:.1%}
False rejections    {report["frr"]:.2%} of clean images (certified: at most {report["frr_certified"]:.2%})
False acceptances   {report["far"]:.2%} of triggered images
Cost                {report["mean_passes_clean"]:.1f} blends for a clean image, of N = {report["n_overlays"]}
Latency             p50 {report["p50_ms"]:.1f} ms, p99 {report["p99_ms"]:.1f} ms, one client at a time
Throughput          {report["images_per_second"]:.0f} clean images/s, {CONCURRENCY} at a time

""".rstrip()
    )


def show_loop(report: dict[str, Any], digests: list[str]) -> None:
    first, healed, last = (digest[:12] for digest in digests)
    print(f"""
After the swap      accuracy {report["acc_healed"]:.1%}, attack success rate {report["asr_healed"]:.1%}; \
{report["robust_acc_healed"]:.1%} of triggered images get their true class
Artifacts served    {first} → {healed} (healed) → {last} (rolled back)
Meanwhile           {report["load_requests"]} requests of {CLIENTS} clients, {report["load_failures"]} failed
Latency             p99 {report["p99_before_swap_ms"]:.0f} ms before the swap, \
{report["p99_during_swap_ms"]:.0f} ms during it
Took                {report["heal_seconds"]:.0f} s to heal, {report["swap_seconds"]:.1f} s to swap

Report: {OUT / "report.json"}   Picture: {OUT / "demo.png"}   Sidecar's log: {OUT / "sidecar.log"}
How it was healed: {OUT / "heal" / "heal.md"}
Next: calibrate your own model, `guard calibrate --model M.onnx --data IMAGES --out repository/NAME`, then
`guard serve --repository repository`; point any Triton or KServe client at port 8001.""")


if __name__ == "__main__":
    main()
