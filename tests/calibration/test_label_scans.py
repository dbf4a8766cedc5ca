from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from calibration.errors import DataError  # noqa: E402
from calibration.scan.base import Bench, Labelled, ScanReport  # noqa: E402
from calibration.scan.executor import LocalExecutor  # noqa: E402
from calibration.scan.label_scan import LabelScan  # noqa: E402
from calibration.scan.neural_cleanse import NeuralCleanse  # noqa: E402
from calibration.scan.perturbation_inversion import PerturbationInversion  # noqa: E402
from calibration.scan.warp_inversion import WarpInversion  # noqa: E402
from calibration.scan.wave_inversion import WaveInversion  # noqa: E402
from tests.calibration.backdoored_nets import CLASSES, TARGET  # noqa: E402
from tests.calibration.scan_subjects import corner_bench  # noqa: E402

SCANS = [NeuralCleanse, WaveInversion, WarpInversion, PerturbationInversion]
QUICK = NeuralCleanse(steps=20, batch=8)


def scan(scanner: LabelScan, bench: Bench) -> ScanReport:
    return scanner.scan(bench, seed=0, executor=LocalExecutor(bench))


def of_classes(classes: int) -> Bench:
    bench = corner_bench()

    class First(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return bench.model(images)[:, :classes]

    parts = (
        Labelled(part.images[part.labels < classes], part.labels[part.labels < classes])
        for part in (bench.clean, bench.held)
    )
    return Bench(First(), classes, *parts, bench.low, bench.high)


@pytest.mark.parametrize("kind", SCANS)
def test_a_network_without_a_backdoor_is_never_called_backdoored(kind: type[LabelScan]) -> None:
    report = scan(kind(steps=40, batch=8), corner_bench(gain=0.0))
    assert report.verdict != "backdoored"
    assert report.flagged == ()
    assert sorted(finding.target for finding in report.findings) == list(range(CLASSES))
    assert len(report.triggers) == 3
    assert report.facts["images"] >= CLASSES * 40 * 8 or kind is WarpInversion


@pytest.mark.parametrize("kind", SCANS)
def test_a_verdict_of_backdoored_names_the_backdoors_label_alone(kind: type[LabelScan]) -> None:
    report = scan(kind(steps=60, batch=8, alpha=0.05), corner_bench())
    assert {finding.target for finding in report.flagged} <= {TARGET}
    assert (report.verdict == "backdoored") == bool(report.flagged)
    if kind is NeuralCleanse:
        assert report.findings[0].target == TARGET
        assert report.verdict != "clean"


def test_one_seed_gives_one_report() -> None:
    first, again = (scan(QUICK, corner_bench()) for _ in range(2))
    assert first.findings == again.findings
    assert first.reasons == again.reasons


def test_some_labels_are_looked_at_and_others_compared_with() -> None:
    report = scan(replace(QUICK, labels=(4, 1), reference=2), corner_bench())
    assert sorted(finding.target for finding in report.findings) == [0, 1, 2, 4]
    assert not any(finding.flagged for finding in report.findings if finding.target not in {4, 1})


@pytest.mark.parametrize("label", [-1, CLASSES])
def test_labels_that_are_no_classes_are_refused(label: int) -> None:
    with pytest.raises(DataError, match=f"from 0 to {CLASSES - 1}, got"):
        scan(replace(QUICK, labels=(0, label)), corner_bench())


@pytest.mark.parametrize("classes", [2, 3])
def test_of_two_or_three_classes_nothing_can_be_said(classes: int) -> None:
    report = scan(QUICK, of_classes(classes))
    assert report.verdict == "inconclusive"
    assert report.flagged == ()


def test_a_handful_of_images_is_enough_to_run() -> None:
    assert scan(QUICK, corner_bench(count=2)).verdict in {"clean", "inconclusive"}
    with pytest.raises(DataError, match="expected some for 0, got none"):
        scan(QUICK, corner_bench(count=1))


def test_a_model_that_says_one_class_of_everything_is_not_called_backdoored() -> None:
    bench = corner_bench()

    class Always(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return bench.model(images) + 100.0 * (torch.arange(CLASSES) == 2)

    report = scan(replace(QUICK, steps=40), replace(bench, model=Always()))
    assert report.verdict != "backdoored"
    facts = {finding.target: finding.facts["before"] for finding in report.findings}
    assert facts == {label: float(label == 2) for label in range(CLASSES)}


def test_a_model_whose_answers_are_no_numbers_is_inconclusive() -> None:
    class Nothing(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1)[:, :CLASSES] * torch.nan

    report = scan(replace(QUICK, steps=3), replace(corner_bench(), model=Nothing()))
    assert report.verdict == "inconclusive"
    assert all(np.isfinite(finding.score) for finding in report.findings)


@pytest.mark.parametrize(
    "options", [{"labels": ()}, {"labels": (1, 1)}, {"steps": 0}, {"reference": 0}, {"alpha": 0.0}]
)
def test_options_without_meaning_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))}: expected"):
        replace(QUICK, **options)  # type: ignore[arg-type]
