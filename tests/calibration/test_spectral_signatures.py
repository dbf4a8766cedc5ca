import numpy as np
import pytest
import torch
from scan_training_sets import bench_of, clean_set, poisoned_set
from torch import nn

from calibration.errors import DataError
from calibration.scan.base import Bench, Scanner, ScanReport
from calibration.scan.executor import LocalExecutor
from calibration.scan.spectral_signatures import SpectralSignatures, farthest_apart, outlier_scores


def scan(bench: Bench, seed: int = 0, **options: object) -> ScanReport:
    return SpectralSignatures(**options).scan(bench, seed=seed, executor=LocalExecutor(bench))


def suspects_of(report: ScanReport) -> list[int]:
    assert report.suspects is not None
    return report.suspects.tolist()


@pytest.mark.parametrize("poisoned", [25, 100, 300])
def test_poisoned_rows_are_found_whatever_share_of_the_label_they_are(poisoned: int) -> None:
    training, rows = poisoned_set(100, poisoned, seed=0)
    report = scan(bench_of(training, trusted=200))
    assert report.verdict == "backdoored"
    assert [finding.target for finding in report.flagged] == [0]
    found = set(suspects_of(report))
    assert found >= set(rows.tolist())
    assert len(found) <= len(rows) + 10  # the cut is where clean rows begin to be as many as trusted images
    assert report.findings[0].score == pytest.approx(poisoned / (100 + poisoned), abs=0.05)
    assert (report.p_value, report.findings[0].p_value) == (None, None)


def test_where_half_is_poisoned_the_training_mean_would_not_part_them() -> None:
    training, rows = poisoned_set(100, 100, seed=0)
    label = np.flatnonzero(training.labels.numpy() == 0)
    features = training.images.numpy().reshape(-1, 8)[label]
    poisoned = np.isin(label, rows)
    about_own_mean, _, _ = outlier_scores(features - features.mean(0))
    # two clouds as far from their common mean: an AUROC of about one half
    auroc = (about_own_mean[poisoned][:, None] > about_own_mean[~poisoned]).mean()
    assert 0.3 < auroc < 0.7


def test_a_clean_set_is_clean_with_one_mode_or_two() -> None:
    assert scan(bench_of(clean_set(100, 0))).verdict == "clean"
    report = scan(bench_of(clean_set(100, 0, modes=True), modes=True))
    assert (report.verdict, suspects_of(report)) == ("clean", [])


def test_the_chance_counts_all_shares_of_all_labels() -> None:
    training, _ = poisoned_set(100, 100, seed=0)
    facts = scan(bench_of(training)).findings[0].facts
    # the top 40 % of 200 rows, none of the trusted images, 3 shares × 3 labels: 9 (1 - 1/5)^m
    assert (facts["share"], facts["trusted_above"]) == (0.4, 0)
    assert facts["chance"] == pytest.approx(9 * 0.8 ** facts["trusted_counted"])


def test_too_few_images_or_none_to_trust_are_inconclusive() -> None:
    assert scan(bench_of(clean_set(19, 0))).verdict == "inconclusive"
    assert scan(bench_of(clean_set(100, 0), trusted=10)).verdict == "inconclusive"
    training, _ = poisoned_set(100, 100, seed=0)
    report = scan(bench_of(training, generated=True))
    assert (report.verdict, report.findings) == ("inconclusive", ())
    assert "made from the model" in report.reasons[0]


def test_a_model_without_a_last_linear_layer_is_inconclusive() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Unflatten(1, (8,)))
    assert "no last linear layer" in scan(bench_of(clean_set(30, 0), model=model)).reasons[0]


def test_a_training_set_is_needed() -> None:
    with pytest.raises(DataError, match=r"spectral_signatures looks at the training set.*--training-set"):
        scan(bench_of(None))


def test_any_seed_gives_the_same_report_and_the_bench_stays() -> None:
    training, _ = poisoned_set(100, 60, seed=3)
    bench = bench_of(training)
    before, images = [weight.clone() for weight in bench.model.parameters()], training.images.clone()
    first, again = scan(bench, seed=5), scan(bench, seed=6)
    assert first.findings == again.findings
    assert suspects_of(first) == suspects_of(again)
    assert all(torch.equal(*pair) for pair in zip(before, bench.model.parameters(), strict=True))
    assert torch.equal(images, training.images)
    assert not any(module._forward_pre_hooks for module in bench.model.modules())


def test_scores_are_squared_projections_on_the_top_right_singular_vector() -> None:
    matrix = np.random.default_rng(1).normal(size=(20, 5)) * [1, 4, 1, 1, 1]
    scores, direction, strength = outlier_scores(matrix)
    _, strengths, vectors = np.linalg.svd(matrix, full_matrices=False)  # provenance: LAPACK's SVD
    np.testing.assert_allclose(scores, (matrix @ vectors[0]) ** 2)
    np.testing.assert_allclose(np.abs(direction), np.abs(vectors[0]))
    np.testing.assert_allclose([strength[0] ** 2, scores.sum()], strengths[0] ** 2)


def test_distributions_are_farthest_apart_where_counted_by_hand() -> None:
    # above 3: two of four scores, one of four others; above 2: two of four, two of four
    assert farthest_apart(np.array([1.0, 2, 8, 9]), np.array([1.0, 2, 3, 9])) == (0.25, 3.0)
    assert farthest_apart(np.array([1.0, 2]), np.array([3.0, 4]))[0] == 0.0


def test_it_is_a_scanner_and_refuses_options_that_make_no_sense() -> None:
    assert isinstance(SpectralSignatures(), Scanner)
    for wrong in ({"shares": ()}, {"shares": (1.0,)}, {"alpha": 1.0}, {"least": 0}):
        with pytest.raises(ValueError):
            SpectralSignatures(**wrong)
