"""What every scanner promises, tried on every scanner in the table."""

import dataclasses
import json
import math
import tomllib
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from calibration.errors import DataError  # noqa: E402
from calibration.scan.base import Arrays, Bench, Executor, Labelled, Scanner, ScanReport, Unit  # noqa: E402
from calibration.scan.executor import Keeping, LocalExecutor  # noqa: E402
from calibration.scan.table import SCANNERS  # noqa: E402
from calibration.trigger import load_trigger, save_trigger  # noqa: E402
from tests.contract.scanner_subjects import ROWS, SHAPES, bench, bench_of, make  # noqa: E402

ROOT = Path(__file__).parents[2]
by_name = pytest.mark.parametrize("name", SCANNERS)
on_every_shape = pytest.mark.parametrize(
    ("name", "shape"),
    [pytest.param(name, shape, id=f"{name}-{shape}") for name in SCANNERS for shape in SHAPES],
)


@dataclasses.dataclass(eq=False)
class Counting(Executor):
    """Does units here, and counts them."""

    bench: Bench
    done: int = 0

    def run(self, units: Sequence[Unit]) -> Iterator[tuple[int, Arrays]]:
        for place, unit in reversed(list(enumerate(units))):
            self.done += 1
            yield place, unit.run(self.bench)


def scan(name: str, on: Bench, executor: Executor | None = None, seed: int = 5) -> ScanReport:
    return make(name).scan(on, seed=seed, executor=executor or LocalExecutor(on))


@cache
def report(name: str, shape: str) -> ScanReport:
    return scan(name, bench(shape))


def plain(report: ScanReport) -> object:
    """Everything in a report that is not time, as values that can be compared."""
    stamped = [one.attack.stamp(_images(report, one.after)) for one in report.triggers]
    return (
        report.verdict,
        report.reasons,
        repr([(one.name, one.score, one.p_value, one.flagged, dict(one.facts)) for one in report.findings]),
        repr((report.p_value, dict(report.facts), dict(report.options))),
        None if report.suspects is None else report.suspects.tolist(),
        [(one.finding, one.form, one.size, one.asr, one.after.tolist()) for one in report.triggers],
        [images.tolist() for images in stamped],
    )


def _images(report: ScanReport, pictures: np.ndarray) -> np.ndarray:
    return pictures.transpose(0, 3, 1, 2).astype(np.float32) / 255


def test_every_scanner_in_the_table_is_tried_here() -> None:
    assert set(ROWS) == set(SCANNERS)


@by_name
def test_a_scanner_has_a_file_and_is_called_what_the_table_calls_it(name: str) -> None:
    entry = SCANNERS[name]
    assert entry.module == name == entry.load().name
    assert (ROOT / "calibration" / "scan" / f"{name}.py").is_file()
    assert entry.load().__module__ == f"calibration.scan.{name}"
    assert entry.finds


def test_the_import_contract_names_every_scanner() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (apart,) = [contract for contract in contracts if contract["id"] == "scanners-stay-apart"]
    assert apart["modules"] == sorted(f"calibration.scan.{entry.module}" for entry in SCANNERS.values())


@by_name
def test_its_docstring_says_where_it_is_from_and_how_it_deviates(name: str) -> None:
    text = SCANNERS[name].load().__doc__ or ""
    assert "References:" in text
    assert "Deviations:" in text


@by_name
def test_it_is_a_frozen_dataclass_of_options_with_the_verb_scan(name: str) -> None:
    scanner = make(name)
    assert isinstance(scanner, Scanner)
    assert dataclasses.is_dataclass(scanner)
    assert scanner.__dataclass_params__.frozen  # type: ignore[attr-defined]
    with pytest.raises(dataclasses.FrozenInstanceError):
        scanner.nope = 1  # type: ignore[attr-defined]


@by_name
def test_the_flags_it_takes_are_options_of_its_own(name: str) -> None:
    entry = SCANNERS[name]
    assert set(entry.flags) <= set(entry.load().__dataclass_fields__)


@on_every_shape
def test_what_it_reports_is_sane(name: str, shape: str) -> None:
    found = report(name, shape)
    assert found.scanner == name
    assert found.verdict in {"backdoored", "clean", "inconclusive"}
    assert found.reasons
    assert all(reason and reason.strip() == reason for reason in found.reasons)
    assert found.verdict == "backdoored" or not found.flagged or found.verdict == "inconclusive"
    assert found.verdict != "backdoored" or found.flagged
    for finding in found.findings:
        assert 0 <= finding.target < SHAPES[shape].classes
        assert finding.source is None or 0 <= finding.source < SHAPES[shape].classes
        assert finding.source != finding.target
        assert finding.p_value is None or 0 <= finding.p_value <= 1
        assert all(isinstance(value, float) for value in finding.facts.values())
    assert len({finding.name for finding in found.findings}) == len(found.findings)
    given = [finding.p_value for finding in found.findings if finding.p_value is not None]
    assert found.p_value == (min(given) if given else None)
    assert found.measure
    assert found.seconds > 0


@on_every_shape
def test_the_most_suspicious_finding_comes_first(name: str, shape: str) -> None:
    found = report(name, shape)
    if found.p_value is None:
        scores = [finding.score for finding in found.findings]
        assert scores == sorted(scores, reverse=True)
    else:
        chances = [1.0 if one.p_value is None else one.p_value for one in found.findings]
        assert chances == sorted(chances)


@on_every_shape
def test_numbers_and_options_can_be_written_as_json(name: str, shape: str) -> None:
    found = report(name, shape)
    json.dumps(dict(found.options), allow_nan=False)
    for facts in (found.facts, *(finding.facts for finding in found.findings)):
        assert not any(math.isnan(value) for value in facts.values())
        json.dumps(dict(facts))
    assert all(not math.isnan(finding.score) for finding in found.findings)


@on_every_shape
def test_triggers_stamp_images_of_the_benchs_shape_within_its_range_and_survive_a_file(
    name: str, shape: str, tmp_path: Path
) -> None:
    found, on = report(name, shape), bench(shape)
    names = {finding.name for finding in found.findings}
    assert {finding.name for finding in found.flagged} <= {one.finding for one in found.triggers} or (
        SCANNERS[name].needs == "training set"
    )
    for number, trigger in enumerate(found.triggers):
        assert trigger.finding in names
        assert 0 <= trigger.asr <= 1
        assert trigger.before.shape == trigger.after.shape == (len(trigger.after), *_last(on.shape))
        images = on.held.images.numpy()[:5]
        stamped = trigger.attack.stamp(images)
        assert stamped.shape == images.shape
        assert stamped.dtype == np.float32
        assert stamped.min() >= SHAPES[shape].low - 1e-5
        assert stamped.max() <= SHAPES[shape].high + 1e-5
        save_trigger(trigger.attack, tmp_path / str(number))
        loaded = load_trigger(tmp_path / str(number))
        assert np.array_equal(loaded.stamp(images), stamped)
        assert np.array_equal(loaded.target_of(np.arange(3)), trigger.attack.target_of(np.arange(3)))


def _last(shape: tuple[int, int, int]) -> tuple[int, int, int]:
    return (*shape[1:], shape[0])


@by_name
def test_the_seed_decides_everything_and_the_order_of_units_nothing(name: str) -> None:
    on = bench_of("ten")
    torch.manual_seed(99)
    np.random.seed(99)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    again = scan(name, on, Counting(on))
    assert plain(again) == plain(report(name, "ten"))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]


@by_name
def test_the_bench_is_left_as_it_was(name: str) -> None:
    on, untouched = bench_of("ten"), bench_of("ten")
    scan(name, on)
    for key, weight in on.model.state_dict().items():
        assert torch.equal(weight, untouched.model.state_dict()[key])
    for part in on.model.modules():
        assert not part.training
        assert not part._forward_hooks
        assert not part._forward_pre_hooks
        assert not part._backward_hooks
    for weight in on.model.parameters():
        assert weight.grad is None
        assert not weight.requires_grad
    for one, other in (
        (on.clean, untouched.clean),
        (on.held, untouched.held),
        (on.training, untouched.training),
    ):
        assert one is not None
        assert other is not None
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
        assert not one.images.requires_grad
    assert torch.equal(on.low, untouched.low)
    assert torch.equal(on.high, untouched.high)


@by_name
def test_what_was_kept_is_not_done_again(name: str, tmp_path: Path) -> None:
    on = bench("ten")
    first, second = Counting(on), Counting(on)
    one = scan(name, on, Keeping(first, tmp_path, on.digest))
    two = scan(name, on, Keeping(second, tmp_path, on.digest))
    assert plain(one) == plain(two) == plain(report(name, "ten"))
    assert first.done > 0
    assert second.done == 0


@by_name
def test_another_seed_or_another_bench_shares_nothing_that_was_kept(name: str, tmp_path: Path) -> None:
    on, other = bench("ten"), Counting(bench("ten"))
    scan(name, on, Keeping(LocalExecutor(on), tmp_path, on.digest))
    scan(name, on, Keeping(other, tmp_path, "another"))
    assert other.done > 0


@by_name
def test_units_say_what_they_weigh_and_no_two_have_one_key(name: str) -> None:
    on, seen = bench("ten"), []

    @dataclasses.dataclass(eq=False)
    class Listening(Executor):
        def run(self, units: Sequence[Unit]) -> Iterator[tuple[int, Arrays]]:
            seen.extend(units)
            return LocalExecutor(on).run(units)

    scan(name, on, Listening())
    assert seen
    assert all(unit.weight > 0 for unit in seen)
    assert len({unit.key for unit in seen}) == len(seen)


@pytest.mark.parametrize("name", [name for name, entry in SCANNERS.items() if entry.needs == "training set"])
def test_a_scanner_of_training_sets_says_that_there_is_none(name: str) -> None:
    on = dataclasses.replace(bench("ten"), training=None)
    with pytest.raises(DataError, match="training set"):
        scan(name, on)


@pytest.mark.parametrize("name", [name for name, entry in SCANNERS.items() if "labels" in entry.flags])
@pytest.mark.parametrize("label", [-1, 10])
def test_a_label_that_is_no_class_is_refused_by_name(name: str, label: int) -> None:
    on = bench("ten")
    scanner = SCANNERS[name].make(**{**ROWS[name].options, "labels": (label,)})
    with pytest.raises(DataError, match=f"labels: expected classes .*{label}"):
        scanner.scan(on, seed=0, executor=LocalExecutor(on))


@pytest.mark.parametrize("name", [name for name, entry in SCANNERS.items() if entry.needs == "images"])
def test_images_of_one_class_only_are_refused_or_leave_it_undecided(name: str) -> None:
    images = bench("ten").clean.images
    alone = Labelled(images, torch.zeros(len(images), dtype=torch.int64))
    on = dataclasses.replace(bench("ten"), clean=alone, held=alone)
    try:
        verdict = scan(name, on).verdict
    except DataError as error:
        said = str(error)
    else:
        said = "images" if verdict != "clean" else verdict
    assert "images" in said


@pytest.mark.ray
@pytest.mark.xdist_group("ray")
def test_on_a_cluster_every_scanner_answers_the_same_to_the_bit() -> None:
    pytest.importorskip("ray")
    from calibration.scan.ray_executor import RayExecutor

    on = bench("ten")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with RayExecutor(on, address=None, workers=1, threads=1) as executor:
            there = {name: plain(scan(name, on, executor)) for name in SCANNERS}
        assert there == {name: plain(scan(name, on)) for name in SCANNERS}
    finally:
        torch.set_num_threads(before)
