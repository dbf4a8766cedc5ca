from dataclasses import replace

import numpy as np
import pytest
import torch
from scan_training_sets import bench_of, clean_set, labelled, poisoned_set
from torch import nn
from training_subjects import Tiny

from calibration.errors import DataError
from calibration.scan.activation_clustering import ActivationClustering
from calibration.scan.base import Bench, Labelled, Scanner, ScanReport
from calibration.scan.executor import LocalExecutor


def scan(bench: Bench, seed: int = 0, **options: object) -> ScanReport:
    return ActivationClustering(**options).scan(bench, seed=seed, executor=LocalExecutor(bench))


def suspects_of(report: ScanReport) -> list[int]:
    assert report.suspects is not None
    return report.suspects.tolist()


@pytest.mark.parametrize("reduction", ["pca", "ica"])
@pytest.mark.parametrize("poisoned", [20, 100, 300])
def test_poisoned_rows_are_found_whatever_share_of_the_label_they_are(reduction: str, poisoned: int) -> None:
    training, rows = poisoned_set(100, poisoned, seed=0)
    report = scan(bench_of(training, trusted=200), reduction=reduction)
    assert report.verdict == "backdoored"
    assert [finding.target for finding in report.flagged] == [0]
    assert suspects_of(report) == rows.tolist()
    assert report.findings[0].facts["suspects"] == poisoned
    assert report.findings[0].facts["trusted_inside"] == 0


def test_a_clean_set_is_clean() -> None:
    report = scan(bench_of(clean_set(100, 0)))
    assert (report.verdict, suspects_of(report), report.flagged) == ("clean", [], ())
    assert "would have been flagged" in report.reasons[0]


def test_a_clean_class_with_two_modes_raises_no_alarm() -> None:
    report = scan(bench_of(clean_set(100, 0, modes=True), modes=True))
    apart = {finding.target: finding.facts["silhouette"] for finding in report.findings}
    assert apart[1] > 0.6  # more than a backdoor needs
    assert report.verdict == "clean"


def test_two_modes_do_not_hide_a_backdoor_elsewhere() -> None:
    training, rows = poisoned_set(100, 100, seed=0, modes=True)
    report = scan(bench_of(training, modes=True))
    assert [finding.target for finding in report.flagged] == [0]
    assert suspects_of(report) == rows.tolist()


def test_the_chance_counts_both_clusters_of_all_labels() -> None:
    training, _ = poisoned_set(100, 100, seed=0)
    report = scan(bench_of(training))
    # half of the label, none of the trusted images, 2 clusters × 3 labels: 6 (1 - 1/4)^m
    count = report.findings[0].facts["trusted_counted"]
    assert report.findings[0].p_value == pytest.approx(6 * 0.75**count)
    assert report.p_value == report.findings[0].p_value
    assert "100 of 200 training images" in report.reasons[0]


def test_clean_images_that_are_copies_of_one_neither_flag_nor_clear() -> None:
    training, _ = poisoned_set(100, 100, seed=0)
    bench = bench_of(training)
    near = bench.clean.images[bench.clean.labels.argsort()][::50].repeat_interleave(50, 0)
    near += 0.001 * torch.randn(near.shape, generator=torch.Generator().manual_seed(0))
    copies = Labelled(near, torch.arange(3).repeat_interleave(50))
    report = scan(replace(bench, clean=copies, held=copies))
    assert (report.verdict, report.p_value) == ("inconclusive", None)
    assert "drawn alike" in report.reasons[0]


def test_without_trusted_images_a_small_cluster_that_looks_like_another_class_is_flagged() -> None:
    clean = clean_set(100, 0)
    points = 3 * np.eye(8)[np.full(20, 2)] + 0.3 * np.random.default_rng(5).normal(size=(20, 8))
    images = np.concatenate([clean.images.numpy().reshape(-1, 8), points])
    training = labelled(images, np.concatenate([clean.labels.numpy(), np.zeros(20, np.int64)]))
    report = scan(bench_of(training, generated=True))
    assert report.verdict == "backdoored"
    assert suspects_of(report) == list(range(300, 320))
    assert (report.findings[0].p_value, report.findings[0].facts["moved"]) == (None, 1.0)


def test_without_trusted_images_nothing_is_cleared_and_modes_raise_no_alarm() -> None:
    report = scan(bench_of(clean_set(100, 0, modes=True), generated=True))
    assert (report.verdict, report.flagged) == ("inconclusive", ())
    assert "made from the model" in report.reasons[0]


def test_too_few_images_are_inconclusive() -> None:
    assert scan(bench_of(clean_set(19, 0))).verdict == "inconclusive"
    assert scan(bench_of(clean_set(100, 0), trusted=10)).verdict == "inconclusive"
    empty = Labelled(torch.zeros(0, 1, 2, 4), torch.zeros(0, dtype=torch.int64))
    assert scan(bench_of(empty)).reasons == ("the training set has no images",)


def test_images_that_are_all_alike_are_inconclusive() -> None:
    report = scan(bench_of(labelled(np.ones((60, 8)), np.arange(60) % 3)))
    assert (report.verdict, report.findings) == ("inconclusive", ())


def test_a_model_without_a_last_linear_layer_is_inconclusive() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Unflatten(1, (8,)))
    report = scan(bench_of(clean_set(30, 0), model=model))
    assert report.verdict == "inconclusive"
    assert "no last linear layer" in report.reasons[0]


def test_a_training_set_is_needed() -> None:
    with pytest.raises(DataError, match=r"activation_clustering looks at the training set.*--training-set"):
        scan(bench_of(None))


def test_the_same_seed_gives_the_same_report_and_the_bench_stays() -> None:
    training, _ = poisoned_set(100, 60, seed=3)
    bench = bench_of(training)
    before = [weight.clone() for weight in bench.model.parameters()]
    images = training.images.clone()
    first, again = scan(bench, seed=5), scan(bench, seed=5)
    assert first.findings == again.findings
    assert suspects_of(first) == suspects_of(again)
    assert all(torch.equal(*pair) for pair in zip(before, bench.model.parameters(), strict=True))
    assert torch.equal(images, training.images)
    assert not any(module._forward_pre_hooks for module in bench.model.modules())


def test_a_convolutional_network_is_scanned() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(120) % 2
    images = torch.rand((120, 3, 8, 8), generator=generator) + labels[:, None, None, None]
    poisoned = images.clone()
    poisoned[:40:2] *= 30
    model = Tiny().eval().requires_grad_(False)
    clean, held = Labelled(images[:60], labels[:60]), Labelled(images[60:], labels[60:])
    bench = Bench(model, 2, clean, held, torch.zeros(3), torch.ones(3), Labelled(poisoned, labels))
    report = scan(bench)
    assert report.verdict == "backdoored"
    assert suspects_of(report) == list(range(0, 40, 2))


def test_it_is_a_scanner_and_its_options_are_told() -> None:
    scanner = ActivationClustering(dimensions=4)
    assert isinstance(scanner, Scanner)
    assert scan(bench_of(clean_set(30, 0)), dimensions=4).options["dimensions"] == 4
    for wrong in ({"restarts": 0}, {"alpha": 0.0}, {"reduction": "t-sne"}, {"dimensions": 0}):
        with pytest.raises((ValueError, TypeError)):
            replace(scanner, **wrong)
