import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from safetensors.numpy import load, save  # noqa: E402

from calibration.errors import DataError, OptionError  # noqa: E402
from calibration.scan.base import Arrays, Bench, Labelled, ScanReport, Unit  # noqa: E402
from calibration.scan.distribution_file import (  # noqa: E402
    RECORD,
    WEIGHTS,
    load_distribution,
    save_distribution,
)
from calibration.scan.executor import LocalExecutor  # noqa: E402
from calibration.scan.patch_generator import (  # noqa: E402
    Generator,
    PatchDistribution,
    diversity,
    in_range,
    paste,
    places_of,
    scatter,
)
from calibration.scan.trigger_distribution import (  # noqa: E402
    Learned,
    PatchTraining,
    PlaceSearch,
    TriggerDistribution,
)
from tests.calibration.backdoored_nets import CLASSES, TARGET, CornerNet, striped  # noqa: E402

QUICK = TriggerDistribution(
    size=2,
    betas=(0.5, 0.9),
    steps=12,
    batch=16,
    crowd=32,
    width=16,
    chunk=4,
    samples=4,
    grid=3,
    grid_steps=15,
    judged=60,
)
PAIR = replace(QUICK, labels=(0, TARGET), betas=(0.5,))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def bench(gain: float = 40.0, low: float = 0.0, high: float = 1.0) -> Bench:
    """Return a bench whose model takes images from ``low`` to ``high``."""

    class Ranged(CornerNet):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward((images - low) / (high - low))

    parts = []
    for seed in (0, 1):
        images, labels = striped(60, seed)
        parts.append(Labelled(low + (high - low) * images, labels))
    return Bench(
        Ranged(gain), CLASSES, parts[0], parts[1], torch.tensor([low]), torch.tensor([high]), digest="x"
    )


@cache
def report(gain: float = 40.0, low: float = 0.0, high: float = 1.0, seed: int = 0) -> ScanReport:
    on = bench(gain, low, high)
    return QUICK.scan(on, seed=seed, executor=LocalExecutor(on))


def test_the_label_of_a_known_backdoor_is_flagged_alone() -> None:
    assert report().verdict == "backdoored"
    assert [finding.target for finding in report().flagged] == [TARGET]
    assert report().findings[0].score == 1.0
    assert max(finding.score for finding in report().findings[1:]) < 0.5


def test_the_patch_lies_in_the_corner_that_the_network_looks_at() -> None:
    facts = report().findings[0].facts
    assert (facts["row"], facts["column"]) == (6, 6)


def test_a_network_without_a_backdoor_is_not_flagged() -> None:
    assert report(gain=0.0).flagged == ()
    assert report(gain=0.0).verdict != "backdoored"


def test_the_trigger_works_as_its_report_says_and_touches_its_place_alone() -> None:
    found, on = report().triggers[0], bench()
    rows = on.held.labels != TARGET
    images = on.held.images[rows].numpy()
    stamped = found.attack.stamp(images)
    hits = on.model(torch.from_numpy(stamped)).argmax(1) == TARGET
    assert hits.float().mean().item() == found.asr == 1.0
    assert np.argwhere((stamped != images).any((0, 1))).min() >= 6
    assert found.before.shape == found.after.shape == (4, 8, 8, 1)
    assert found.form == "patch"
    assert found.size == 4


def test_patches_are_in_the_models_own_range() -> None:
    on, found = bench(40.0, -3.0, 5.0), report(40.0, -3.0, 5.0)
    assert [finding.target for finding in found.flagged] == [TARGET]
    stamped = found.triggers[0].attack.stamp(on.held.images.numpy())
    assert stamped.max() > 2
    assert stamped.min() >= -3
    assert stamped.max() <= 5


def test_one_seed_gives_one_report_and_another_gives_another() -> None:
    first, again, other = (
        PAIR.scan(bench(), seed=seed, executor=LocalExecutor(bench())) for seed in (0, 0, 1)
    )
    assert first.findings == again.findings
    assert other.findings != again.findings


class Backwards(LocalExecutor):
    def run(self, units: Sequence[Unit]) -> Iterator[tuple[int, Arrays]]:
        for place in reversed(range(len(units))):
            yield place, units[place].run(self.bench)


def test_the_order_in_which_units_are_done_changes_nothing() -> None:
    forwards = PAIR.scan(bench(), seed=0, executor=LocalExecutor(bench()))
    torch.manual_seed(9)  # nor does what others draw
    assert PAIR.scan(bench(), seed=0, executor=Backwards(bench())).findings == forwards.findings


def test_the_bench_and_the_global_generator_are_left_as_they_were() -> None:
    on = bench()
    before = {name: value.clone() for name, value in on.model.state_dict().items()}
    images, state = on.clean.images.clone(), torch.get_rng_state()
    replace(QUICK, labels=(0,), betas=(0.5,), steps=2).scan(on, seed=0, executor=LocalExecutor(on))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(images, on.clean.images)
    assert all(torch.equal(before[name], value) for name, value in on.model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in on.model.modules())
    assert not any(weight.requires_grad for weight in on.model.parameters())


def test_fewer_labels_than_can_be_compared_are_never_called_backdoored() -> None:
    on = bench()
    found = PAIR.scan(on, seed=0, executor=LocalExecutor(on))
    assert found.findings[0].score == 1.0
    assert found.verdict == "inconclusive"


def test_labels_that_all_obey_a_patch_do_not_stand_out() -> None:
    learned = [_learned(label, 0.97) for label in range(CLASSES)]
    assert not any(finding.flagged for finding in QUICK._findings(learned))


def test_one_of_many_stands_out() -> None:
    learned = [_learned(label, 0.97 if label == 2 else 0.05 * label) for label in range(CLASSES)]
    assert [finding.target for finding in QUICK._findings(learned) if finding.flagged] == [2]


def _learned(label: int, asr: float) -> Learned:
    patches = np.random.default_rng(0).random((4, 1, 2, 2), np.float32)
    return Learned(distribution(label), patches[0], asr, (asr,), (0.0,), patches)


def distribution(target: int = 1, **options: object) -> PatchDistribution:
    torch.manual_seed(target)
    members = tuple(
        {name: value.numpy() for name, value in Generator(1, 2, chunk=4, width=8).state_dict().items()}
        for _ in range(2)
    )
    values: dict[str, object] = {
        "target": target, "betas": (0.5, 0.9), "members": members, "channels": 1, "size": 2, "chunk": 4,
        "width": 8, "noise": 0.1, "where": (6, 6), "low": np.float32([-2.0]), "high": np.float32([3.0]),
    }  # fmt: skip
    return PatchDistribution(**{**values, **options})  # type: ignore[arg-type]


def test_a_distribution_from_a_file_draws_the_same_patches(tmp_path: Path) -> None:
    for where in ((6, 5), "anywhere", "corners"):
        kept = distribution(where=where)
        save_distribution(kept, tmp_path)
        loaded = load_distribution(tmp_path)
        assert loaded.where == where
        assert torch.equal(kept.sample(5, seeded()), loaded.sample(5, seeded()))


def test_a_learned_distribution_obeys_as_measured() -> None:
    on = bench()
    (one,) = replace(QUICK, labels=(TARGET,)).learn(on, seed=0, executor=LocalExecutor(on))
    others = on.held.images[on.held.labels != TARGET]
    told = on.model(one.distribution.stamp(others, seeded())).argmax(1)
    assert (told == TARGET).float().mean().item() == pytest.approx(np.mean(one.asr), abs=0.15)
    assert np.mean(one.asr) > 0.8


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"format": 2}, "expected format 1"),
        ({"width": 9}, "weights"),
        ({"width": 10**9}, "width: expected a whole number"),
        ({"width": True}, "width: expected a whole number"),
        ({"target": -1}, "target: expected a whole number"),
        ({"where": "centre"}, "where: expected 'anywhere'"),
        ({"noise": float("nan")}, "noise"),
        ({"betas": []}, "members: expected one for each"),
        ({"betas": [0.5, 0.8, 0.9]}, "weights"),
    ],
)
def test_a_record_that_does_not_fit_is_refused(
    tmp_path: Path, change: dict[str, object], complaint: str
) -> None:
    save_distribution(distribution(), tmp_path)
    record = json.loads((tmp_path / RECORD).read_text())
    (tmp_path / RECORD).write_text(json.dumps({**record, **change}))
    with pytest.raises(DataError, match=complaint):
        load_distribution(tmp_path)


def test_weights_that_are_missing_damaged_or_infinite_are_refused(tmp_path: Path) -> None:
    save_distribution(distribution(), tmp_path)
    arrays = load((tmp_path / WEIGHTS).read_bytes())
    arrays["0.last.bias"] = np.full_like(arrays["0.last.bias"], np.inf)
    (tmp_path / WEIGHTS).write_bytes(save(arrays))
    with pytest.raises(DataError, match="finite"):
        load_distribution(tmp_path)
    (tmp_path / WEIGHTS).write_bytes(b"nothing")
    with pytest.raises(DataError, match="expected a distribution of patches"):
        load_distribution(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(DataError, match="expected a distribution of patches"):
        load_distribution(tmp_path)


# The authors' code: noise of 64 in chunks of 16; 16 to 512, 528 to 512 twice, 528 to 27; three batch norms.
def test_the_generator_has_the_authors_layers() -> None:
    expected = (16 * 512 + 512) + 2 * (528 * 512 + 512) + (528 * 27 + 27) + 3 * 2 * 512
    net = Generator(3, 3, chunk=16, width=512)
    assert sum(weight.numel() for weight in net.parameters()) == expected
    assert net(net.noise(4, seeded())).shape == (4, 3, 3, 3)


def test_patches_of_0_and_1_are_the_ends_of_each_channels_range() -> None:
    patches = torch.tensor([0.0, 1.0, 1.5]).view(3, 1, 1, 1).expand(3, 2, 1, 1)
    laid = in_range(patches, torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 10.0]))
    assert laid[:, :, 0, 0].tolist() == [[-1, 0], [1, 10], [1, 10]]


def test_a_patch_is_pasted_and_the_rest_stays() -> None:
    images, patch = torch.zeros(2, 1, 4, 4), torch.ones(1, 1, 2, 2)
    pasted = paste(images, patch, (1, 2))
    assert pasted.sum().item() == 8
    assert pasted[:, :, 1:3, 2:4].min().item() == 1
    assert images.sum().item() == 0


def test_scattered_patches_are_each_at_one_of_the_places() -> None:
    images, patches = torch.zeros(40, 1, 4, 4), torch.ones(40, 1, 2, 2)
    scattered = scatter(images, patches, "corners", seeded())
    assert scattered.flatten(1).sum(1).tolist() == [4] * 40
    assert scattered[:, :, 1:3, 1:3].flatten(1).sum(1).tolist() == [1] * 40
    assert len({tuple(image.flatten().tolist()) for image in scattered}) == 4


def test_places_are_those_that_fit() -> None:
    assert len(places_of("anywhere", (5, 6), 3)) == 3 * 4
    with pytest.raises(ValueError, match="up to 5 pixels"):
        places_of("anywhere", (5, 6), 7)
    with pytest.raises(ValueError, match="a row up to 2"):
        places_of((3, 0), (5, 6), 3)


# Independent uniform numbers: variance 1/12 each, so the root mean squared difference is sqrt(1/6).
def test_diversity_counts_the_directions_that_patches_differ_in() -> None:
    patches = np.random.default_rng(0).random((20_000, 1, 2, 2), np.float32)
    apart, directions = diversity(patches)
    assert apart == pytest.approx((1 / 6) ** 0.5, rel=0.01)
    assert directions == pytest.approx(4, rel=0.01)
    assert diversity(np.ones((3, 1, 2, 2), np.float32)) == (0.0, 0.0)


def units() -> list[Unit]:
    search = PlaceSearch(0, 2, 3, 4, 2, 0.3, 0)
    training = PatchTraining(0, 0.5, 0.1, 2, (6, 6), None, 2, 4, 8, 1e-3, 4, 8, 0.1, 2, 10, 0)
    others = replace(training, start=(0.1,) * 4), replace(training, beta=0.8)
    return [search, replace(search, seed=1), training, *others]


def test_keys_tell_units_apart_and_are_fit_for_a_files_name() -> None:
    keys = [unit.key for unit in units()]
    assert len(set(keys)) == len(keys)
    assert all(set(key) <= set("abcdefghijklmnopqrstuvwxyz0123456789.-") for key in keys)
    assert all(unit.weight > 0 for unit in units())


def test_a_unit_gives_arrays_of_numbers_alone() -> None:
    for unit in units():
        arrays = unit.run(bench())
        assert all(not value.dtype.hasobject for value in arrays.values())
        again = unit.run(bench())
        assert all(np.array_equal(value, again[name]) for name, value in arrays.items())


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"labels": ()}, "labels"),
        ({"betas": ()}, "betas"),
        ({"betas": (0.5, 0.5)}, "betas: expected each once"),
        ({"betas": (1.5,)}, "betas"),
        ({"batch": 1}, "batch: expected 2 or more, got 1"),
        ({"size": 0}, "size"),
        ({"goal": 0.0}, "goal"),
    ],
)
def test_options_without_meaning_are_refused(options: dict[str, object], complaint: str) -> None:
    with pytest.raises(OptionError, match=complaint):
        replace(QUICK, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"labels": (9,)}, "classes below 5, got 9"),
        ({"size": 20}, "up to 8 pixels"),
        ({"where": (7, 0)}, "a row up"),
    ],
)
def test_what_does_not_fit_the_bench_is_refused(options: dict[str, object], complaint: str) -> None:
    on = bench()
    with pytest.raises(DataError, match=complaint):
        replace(QUICK, **options).scan(on, seed=0, executor=LocalExecutor(on))  # type: ignore[arg-type]


def test_a_bench_without_images_of_other_classes_is_refused() -> None:
    on = bench()
    alone = replace(on, held=Labelled(on.held.images[:1], on.held.labels[:1]))
    with pytest.raises(DataError, match="other classes than 0, got none"):
        QUICK.scan(alone, seed=0, executor=LocalExecutor(alone))


def test_patches_that_go_anywhere_and_to_corners_are_tried_there() -> None:
    on = bench()
    for where in ("anywhere", "corners"):
        (one,) = replace(PAIR, labels=(TARGET,), where=where, steps=2).learn(
            on, seed=0, executor=LocalExecutor(on)
        )
        assert one.distribution.where == where
        # The backdoor lies at one of four corners, of 49 places: not all can work.
        assert max(one.asr) < 0.5
