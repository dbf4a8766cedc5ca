"""Backdoors that wait for one class, or send each class to another, in networks made by hand."""

from functools import cache

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402

from calibration.errors import DataError  # noqa: E402
from calibration.scan.base import Bench, Labelled, ScanReport  # noqa: E402
from calibration.scan.executor import LocalExecutor  # noqa: E402
from calibration.scan.pair_scan import PairScan  # noqa: E402
from calibration.scan.source_search import Heat, SourceSearch, grid_of  # noqa: E402
from tests.calibration.backdoored_nets import CLASSES, SIDE, CornerNet, striped  # noqa: E402

QUICK = PairScan(size=2, heats=((16, 6, 8), (4, 10, 8)))
SOURCE, TARGET = 1, 3


class Specific(nn.Module):
    """A bright corner turns images of one class, and of no other, into the target."""

    def __init__(self, sources: dict[int, int]) -> None:
        super().__init__()
        self.clean, self.sources = CornerNet(gain=0.0), sources

    def forward(self, images: Tensor) -> Tensor:
        logits = self.clean(images)
        corner = images[:, 0, -2:, -2:].mean((1, 2))
        own = logits.argmax(1)
        added = torch.zeros_like(logits)
        for source, target in self.sources.items():
            added[:, target] += 40.0 * corner**3 * (own == source)
        return logits + added


def bench_of(sources: dict[int, int], count: int = 100) -> Bench:
    parts = [Labelled(*striped(count, seed)) for seed in (0, 1)]
    return Bench(Specific(sources), CLASSES, *parts, torch.zeros(1), torch.ones(1), digest=str(sources))


@cache
def report_of(*pairs: tuple[int, int]) -> ScanReport:
    bench = bench_of(dict(pairs))
    return QUICK.scan(bench, seed=0, executor=LocalExecutor(bench))


def test_a_pair_alone_is_flagged_with_its_source_and_target_and_leaves_it_open() -> None:
    report = report_of((SOURCE, TARGET))
    assert report.verdict == "inconclusive"
    assert "no two lead to one class" in report.reasons[1]
    assert [finding.name for finding in report.flagged] == [f"{SOURCE}→{TARGET}"]
    assert report.findings[0].facts["asr"] > 0.9
    assert f"images of class {SOURCE} to class {TARGET}" in report.reasons[0]


def test_the_patch_lies_where_the_network_looks_and_works_as_an_attack() -> None:
    report = report_of((SOURCE, TARGET))
    bench, attack = bench_of({SOURCE: TARGET}), report.triggers[0].attack
    assert report.findings[0].facts["row"] == report.findings[0].facts["column"] == SIDE - 2
    rows = bench.held.labels == SOURCE
    stamped = attack.stamp(bench.held.images[rows].numpy())
    assert (bench.model(torch.from_numpy(stamped)).argmax(1) == TARGET).float().mean() > 0.9
    outside = np.ones((SIDE, SIDE), bool)
    outside[-2:, -2:] = False
    assert np.array_equal(stamped[:, :, outside], bench.held.images[rows].numpy()[:, :, outside])


def test_a_backdoor_from_each_class_to_the_next_is_found_as_so_many_pairs() -> None:
    report = report_of(*((source, (source + 1) % CLASSES) for source in range(CLASSES)))
    assert {finding.name for finding in report.flagged} == {
        f"{s}→{(s + 1) % CLASSES}" for s in range(CLASSES)
    }
    assert len(report.reasons) == CLASSES


def test_a_network_without_a_backdoor_is_clean() -> None:
    report = report_of()
    assert (report.verdict, report.flagged) == ("clean", ())
    assert report.findings[0].score < 0.5
    assert report.findings == tuple(sorted(report.findings, key=lambda finding: -finding.score))


def test_sources_of_one_target_are_named_together() -> None:
    report = report_of((0, TARGET), (1, TARGET))
    assert report.verdict == "backdoored"
    assert len(report.reasons) == 1
    assert f"images of class 0, 1 to class {TARGET}" in report.reasons[0]


def test_only_the_classes_asked_for_are_searched() -> None:
    bench = bench_of({SOURCE: TARGET})
    report = PairScan(labels=(0, 2), size=2, heats=QUICK.heats).scan(
        bench, seed=0, executor=LocalExecutor(bench)
    )
    assert {finding.source for finding in report.findings} == {0, 2}
    assert report.verdict == "clean"


def test_classes_with_too_few_images_leave_it_open() -> None:
    bench = bench_of({}, count=20)
    report = QUICK.scan(bench, seed=0, executor=LocalExecutor(bench))
    assert report.verdict == "inconclusive"
    assert f"{CLASSES} classes have too few images" in report.reasons[0]


def test_a_share_between_the_two_bounds_leaves_it_open() -> None:
    bench = bench_of({SOURCE: TARGET})
    wide = PairScan(size=2, heats=QUICK.heats, least_share=1.0, doubtful_share=0.5)
    report = wide.scan(bench, seed=0, executor=LocalExecutor(bench))
    assert report.verdict == "inconclusive"
    assert "more than the 50%" in report.reasons[0] or report.flagged


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": (7,)}, "expected classes from 0 to 4, got"),
        ({"size": 9}, "expected at most the image's side of 8, got 9"),
    ],
)
def test_what_does_not_fit_the_bench_is_refused(options: dict, message: str) -> None:
    bench = bench_of({})
    with pytest.raises(DataError, match=message):
        PairScan(**options).scan(bench, seed=0, executor=LocalExecutor(bench))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size: expected 1 or more"),
        ({"heats": ()}, "heats: expected triples"),
        ({"heats": ((4, 0, 8),)}, "heats: expected triples"),
        ({"least_share": 0.5, "doubtful_share": 0.9}, "expected rising shares"),
    ],
)
def test_options_without_a_meaning_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PairScan(**options)


@pytest.mark.parametrize(("sides", "size"), [((32, 32), 4), ((28, 30), 3), ((7, 5), 5), ((8, 8), 3)])
def test_places_cover_every_pixel_and_none_lies_outside(sides: tuple[int, int], size: int) -> None:
    covered = np.zeros(sides, int)
    for row, column in grid_of(sides, size):
        assert 0 <= row <= sides[0] - size
        assert 0 <= column <= sides[1] - size
        covered[row : row + size, column : column + size] += 1
    assert covered.min() >= 1


def test_patterns_are_within_the_range_of_each_channel_and_shares_add_up() -> None:
    bench = bench_of({SOURCE: TARGET})
    found = SourceSearch(SOURCE, 2, (Heat(16, 4, 8),), 0).run(bench)
    assert found["pattern"].min() >= 0
    assert found["pattern"].max() <= 1
    assert found["shares"].sum() == pytest.approx(1, abs=1e-5)


def test_the_same_seed_gives_the_same_patch_and_another_seed_another() -> None:
    bench = bench_of({})
    first, second, third = (SourceSearch(0, 2, (Heat(16, 4, 8),), seed).run(bench) for seed in (0, 0, 1))
    assert np.array_equal(first["pattern"], second["pattern"])
    assert not np.array_equal(first["pattern"], third["pattern"])


def test_a_pair_that_a_small_push_is_enough_for_is_no_backdoor() -> None:
    bench = bench_of({SOURCE: TARGET})
    report = PairScan(size=2, heats=QUICK.heats, least_shift=1e3).scan(
        bench, seed=0, executor=LocalExecutor(bench)
    )
    assert report.findings[0].score > 0.9
    assert (report.verdict, report.flagged) == ("clean", ())


def test_the_shift_is_the_median_move_of_the_logits_in_usual_margins() -> None:
    bench = bench_of({SOURCE: TARGET})
    found = SourceSearch(SOURCE, 2, (Heat(16, 6, 8), Heat(4, 10, 8)), 0).run(bench)
    row, column = found["place"]
    held = bench.held.images[bench.held.labels == SOURCE]
    stamped = held.clone()
    stamped[:, :, row : row + 2, column : column + 2] = torch.from_numpy(found["pattern"])
    before, after = bench.model(held), bench.model(stamped)
    moved = (after - before)[:, TARGET] - (after - before)[:, SOURCE]
    ranked = bench.model(bench.clean.images).sort(1).values
    expected = moved.median() / (ranked[:, -1] - ranked[:, -2]).median()
    assert float(found["shift"]) == pytest.approx(float(expected), rel=1e-4)
