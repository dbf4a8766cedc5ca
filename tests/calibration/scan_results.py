"""Scan results made by hand, for the tests of the reports."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from calibration.attacks.badnets import BadNets
from calibration.scan.base import Finding, FoundTrigger, ScanReport, ScanResult, Verdict

CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def scenes(count: int, side: int, seed: int = 0) -> np.ndarray:
    """Return smooth coloured pictures, channels last."""
    generator = np.random.default_rng(seed)
    grid = np.linspace(0, 1, side)
    waves = generator.uniform(1, 4, (count, 2, 3)), generator.uniform(0, 6, (count, 1, 1, 3))
    rows, columns = grid[:, None, None], grid[None, :, None]
    phase = waves[0][:, 0, None, None] * rows + waves[0][:, 1, None, None] * columns
    return np.round(127 + 110 * np.sin(3 * phase + waves[1])).astype(np.uint8)


def trigger(
    finding: str, target: int, *, form: str = "patch", side: int = 32, count: int = 6
) -> FoundTrigger:
    attack = BadNets(target)
    before = scenes(count, side)
    images = before.transpose(0, 3, 1, 2).astype(np.float32) / 255
    after = np.round(attack.stamp(images).transpose(0, 2, 3, 1) * 255).astype(np.uint8)
    return FoundTrigger(finding, attack, 0.987, 9.0, form, before, after)


def inversion(classes: int, *flagged: int, seed: int = 0) -> ScanReport:
    """Return what a scanner in the manner of Neural Cleanse answers: a size and an anomaly index a label."""
    sizes = np.random.default_rng(seed).normal(96, 12, classes).clip(40)
    sizes[list(flagged)] = [9.0 + place for place in range(len(flagged))]
    middle = float(np.median(sizes))
    spread = 1.4826 * float(np.median(np.abs(sizes - middle)))
    findings = [
        Finding(
            target=label,
            score=(middle - size) / spread,
            p_value=1.5e-7 if label in flagged else 1.0,
            flagged=label in flagged,
            facts={
                "size": float(size),
                "anomaly_index": abs(middle - size) / spread,
                "asr": 0.99 if label in flagged else 0.85,
                "steps": 300.0,
            },
        )
        for label, size in enumerate(sizes.tolist())
    ]
    findings.sort(key=lambda finding: -finding.score)
    return ScanReport(
        scanner="neural_cleanse",
        verdict="backdoored" if flagged else "clean",
        reasons=tuple(
            f"label {label} needs a trigger of only {9 + place}; the median is {middle:.0f}"
            for place, label in enumerate(flagged)
        )
        or ("no label needs a trigger much smaller than the others",),
        findings=tuple(findings),
        p_value=1.5e-7 if flagged else 0.41,
        triggers=tuple(trigger(str(label), label) for label in flagged),
        measure="anomaly index, signed",
        options={"steps": 300, "forms": ("patch", "waves"), "rate": 0.1},
        facts={"images": 1.2e6, "worst": math.inf},
        seconds=142.4,
    )


def in_pairs(classes: int) -> ScanReport:
    """Return what a scanner of pairs answers, unsure about 1→3."""
    generator = np.random.default_rng(3)
    findings = [
        Finding(
            target=target,
            source=source,
            score=8.5 if (source, target) == (1, 3) else float(generator.uniform(0, 3)),
            p_value=0.04 if (source, target) == (1, 3) else 1.0,
            flagged=(source, target) == (1, 3),
            facts={"size": 30.0 if (source, target) == (1, 3) else float(generator.uniform(60, 90))},
        )
        for target in range(classes)
        for source in range(classes)
        if source != target
    ]
    findings.sort(key=lambda finding: -finding.score)
    return ScanReport(
        scanner="pairs",
        verdict="inconclusive",
        reasons=("1→3 stands out, but only 12 held images of class 1 are there to confirm it",),
        findings=tuple(findings),
        p_value=0.04,
        triggers=(trigger("1→3", 3, form="waves"),),
        measure="log-odds",
        seconds=61.0,
    )


def of_training_set() -> ScanReport:
    """Return what a scanner of the training set answers."""
    return ScanReport(
        scanner="spectral",
        verdict="backdoored",
        reasons=("a tenth of the rows labelled 3 lie apart from the others",),
        findings=(
            Finding(3, 5.25, flagged=True, facts={"share": 0.1}),
            Finding(0, 0.5, facts={"share": 0.0}),
        ),
        suspects=np.arange(7, 7 + 3 * 450, 3, dtype=np.int64),
        measure="outlier score",
        seconds=3.25,
    )


def result(*reports: ScanReport, classes: int = 10, names: tuple[str, ...] | None = CIFAR) -> ScanResult:
    verdicts = {report.verdict for report in reports}
    verdict: Verdict = (
        "backdoored" if "backdoored" in verdicts else "clean" if verdicts == {"clean"} else "inconclusive"
    )
    return ScanResult(
        verdict=verdict,
        reports=reports,
        model="models/resnet18.onnx",
        model_sha256="4f1c" * 16,
        model_kind="onnx",
        data="clean_images/",
        data_sha256="90ab" * 16,
        clean=900,
        held=100,
        classes=classes,
        class_names=names,
        acc=0.934,
        seed=7,
        executor="local",
        machine={"system": "Linux", "architecture": "x86_64", "cpu_count": 16},
        versions={"inference-guard": "0.1.0", "numpy": "2.3.0", "torch": "2.13.0"},
        started="2026-01-02T03:04:05Z",
        seconds=206.65,
        notes=("images were resized from 40 x 40",),
    )


def full() -> ScanResult:
    """Return a scan of CIFAR-10's ten classes by three scanners, with label 3 backdoored."""
    return result(inversion(10, 3), in_pairs(10), of_training_set())


def many(classes: int, *flagged: int) -> ScanResult:
    """Return a scan of a model of many classes."""
    names = tuple(f"class number {label}" for label in range(classes))
    return result(inversion(classes, *flagged), classes=classes, names=names)


def hostile(text: str) -> ScanResult:
    """Return a scan in which everything that comes from outside is the given text."""
    made = full()
    reports = tuple(replace(report, reasons=(text,), options={text: text}) for report in made.reports)
    return replace(
        made,
        reports=reports,
        class_names=(text,) * 10,
        model=text,
        data=text,
        notes=(text,),
        machine={"system": text},
    )
