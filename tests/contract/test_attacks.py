"""What every attack promises, tried on every attack in the table."""

import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.attacks.badnets import BadNets
from calibration.attacks.base import Attack, Poisoned, dress
from calibration.attacks.table import ATTACKS, make
from calibration.trigger import load_trigger, save_trigger

torch = pytest.importorskip("torch")

from attack_subjects import ROWS, SHAPES, fitted, fresh, material  # noqa: E402

CASES = [pytest.param(name, shape, id=f"{name}-{shape}") for name in ATTACKS for shape in SHAPES]
on_every_attack = pytest.mark.parametrize(("name", "shape"), CASES)
by_name = pytest.mark.parametrize("name", ATTACKS)


@cache
def poisoned(name: str, shape: str, seed: int = 6) -> Poisoned:
    return poison_anew(name, shape, seed)


def poison_anew(name: str, shape: str, seed: int) -> Poisoned:
    data = material(shape)
    return fitted(name, shape).poison(data.images, data.labels, ROWS[name].rate, np.random.default_rng(seed))


def rate_base(attack: Attack, labels: np.ndarray) -> int:
    return len(labels) if attack.changes_labels else int((attack.target_of(labels) == labels).sum())


def test_every_attack_in_the_table_is_tried_here() -> None:
    assert set(ROWS) == set(ATTACKS)


def test_every_attack_has_a_file_of_its_own_and_no_file_is_left_out() -> None:
    import calibration.attacks

    shared = {
        "__init__",
        "base",
        "dressing",
        "measure",
        "patch",
        "table",
        "tensors",
        "trigger_nets",
        "warping",
        "wrapping",
    }
    files = {path.stem for path in Path(calibration.attacks.__path__[0]).glob("*.py")}
    assert files - shared == {entry.module for entry in ATTACKS.values()} == set(ATTACKS)


@by_name
def test_an_attack_is_called_what_the_table_calls_it(name: str) -> None:
    assert ATTACKS[name].load().name == name


@by_name
def test_its_docstring_says_what_it_is_for_where_it_is_from_and_how_it_deviates(name: str) -> None:
    text = ATTACKS[name].load().__doc__ or ""
    assert all(part in text for part in ("For making test subjects only.", "References:", "Deviations:"))


def test_attacks_that_do_not_need_torch_are_made_without_it() -> None:
    names = [name for name, entry in ATTACKS.items() if "torch" not in entry.needs]
    code = (
        "import sys\nfrom calibration.attacks.table import ATTACKS\nimport calibration.trigger\n"
        f"for name in {names!r}: ATTACKS[name].load()\nprint('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@on_every_attack
def test_whatever_it_makes_of_images_are_images_of_that_shape_in_0_to_1(name: str, shape: str) -> None:
    attack, images = fitted(name, shape), material(shape).images[:9]
    for made in (
        attack.stamp(images),
        attack.imprint(images),
        attack.cover(images, np.random.default_rng(0)),
    ):
        assert made.shape == images.shape
        assert made.dtype == np.float32
        assert made.min() >= 0
        assert made.max() <= 1


@on_every_attack
def test_stamping_changes_no_more_than_it_says(name: str, shape: str) -> None:
    attack, images = fitted(name, shape), material(shape).images[:9]
    stamped = attack.stamp(images)
    assert all(not np.array_equal(one, other) for one, other in zip(stamped, images, strict=True))
    ROWS[name].check(attack, images, stamped)


@on_every_attack
def test_an_image_is_stamped_alike_alone_and_in_company(name: str, shape: str) -> None:
    attack, images = fitted(name, shape), material(shape).images[:5]
    one_by_one = np.concatenate([attack.stamp(images[row : row + 1]) for row in range(5)])
    np.testing.assert_allclose(one_by_one, attack.stamp(images), atol=1e-6)


@by_name
def test_no_images_stamped_are_no_images(name: str) -> None:
    attack, none = fitted(name, "cifar"), material("cifar").images[:0]
    assert attack.stamp(none).shape == attack.imprint(none).shape == (0, 3, 32, 32)
    assert attack.cover(none, np.random.default_rng(0)).shape == (0, 3, 32, 32)


@by_name
def test_the_global_generators_are_neither_asked_nor_moved_on(name: str) -> None:
    data, made = material("cifar"), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        before = torch.get_rng_state(), np.random.get_state()[1].tolist()
        attack = fresh(name, "cifar", 9)
        attack.poison(data.images, data.labels, ROWS[name].rate, np.random.default_rng(0))
        made.append(attack.stamp(data.images[:2]))
        assert torch.equal(torch.get_rng_state(), before[0])
        assert np.random.get_state()[1].tolist() == before[1]
    assert np.array_equal(*made)


@on_every_attack
def test_nothing_it_is_given_is_changed(name: str, shape: str) -> None:
    attack, data = fitted(name, shape), material(shape)
    images, labels = data.images.copy(), data.labels.copy()
    attack.stamp(images[:9])
    attack.imprint(images[:9])
    attack.cover(images[:9], np.random.default_rng(0))
    attack.poison(images, labels, ROWS[name].rate, np.random.default_rng(0))
    assert np.array_equal(images, data.images)
    assert np.array_equal(labels, data.labels)


@on_every_attack
def test_the_target_of_every_class_is_a_class_and_another_one_where_success_is_measured(
    name: str, shape: str
) -> None:
    attack, classes = fitted(name, shape), np.arange(SHAPES[shape][3], dtype=np.int64)
    targets, measured = attack.target_of(classes), attack.applies_to(classes)
    assert np.isin(targets, classes).all()
    assert measured.any()
    assert (targets[measured] != classes[measured]).all()


@on_every_attack
def test_as_many_rows_are_poisoned_as_the_rate_says(name: str, shape: str) -> None:
    labels = material(shape).labels
    expected = round(ROWS[name].rate * rate_base(fitted(name, shape), labels))
    index = poisoned(name, shape).index
    assert len(index) == expected > 0
    assert (np.diff(index) > 0).all()


@on_every_attack
def test_only_poisoned_rows_are_relabelled_and_all_of_them_unless_labels_are_kept(
    name: str, shape: str
) -> None:
    attack, labels, done = fitted(name, shape), material(shape).labels, poisoned(name, shape)
    changed = np.flatnonzero(done.labels[: len(labels)] != labels)
    assert np.array_equal(done.labels[done.index], attack.target_of(labels[done.index]))
    assert np.array_equal(changed, done.index if attack.changes_labels else np.empty(0))


@on_every_attack
def test_covers_are_other_rows_than_the_poisoned(name: str, shape: str) -> None:
    done = poisoned(name, shape)
    assert not np.intersect1d(done.index, done.covers).size
    assert len(np.unique(done.covers)) == len(done.covers)


@on_every_attack
def test_rows_that_are_neither_poisoned_nor_covers_are_as_they_were(name: str, shape: str) -> None:
    data, done = material(shape), poisoned(name, shape)
    rest = np.setdiff1d(np.arange(len(done.labels)), np.concatenate([done.index, done.covers]))
    assert np.array_equal(done.images[rest], data.images[done.source[rest]])
    assert np.array_equal(done.labels[rest], data.labels[done.source[rest]])
    assert all((done.images[row] != data.images[done.source[row]]).any() for row in done.index)
    assert all((done.images[row] != data.images[done.source[row]]).any() for row in done.covers)


@on_every_attack
def test_soft_labels_are_probabilities_and_agree_with_the_labels(name: str, shape: str) -> None:
    data, attack = material(shape), fitted(name, shape)
    plan = attack.plan(data.labels, ROWS[name].rate, np.random.default_rng(6))
    targets = plan.targets(data.classes)
    np.testing.assert_allclose(targets.sum(1), 1, atol=1e-6)
    assert np.array_equal(targets.argmax(1), plan.labels)


@on_every_attack
def test_the_generator_decides_everything(name: str, shape: str) -> None:
    one, same = poisoned(name, shape), poison_anew(name, shape, 6)
    other = fitted(name, shape).plan(material(shape).labels, ROWS[name].rate, np.random.default_rng(7))
    assert np.array_equal(one.images, same.images)
    assert np.array_equal(one.labels, same.labels)
    assert np.array_equal(one.covers, same.covers)
    assert not np.array_equal(one.index, other.index)


@by_name
def test_two_attacks_fitted_from_one_seed_stamp_alike(name: str) -> None:
    images = material("cifar").images[:3]
    assert np.array_equal(fresh(name, "cifar", 9).stamp(images), fresh(name, "cifar", 9).stamp(images))


@by_name
def test_poisoning_is_planning_preparing_and_dressing(name: str) -> None:
    attack, data = fitted(name, "cifar"), material("cifar")
    generator = np.random.default_rng(6)
    plan = attack.plan(data.labels, ROWS[name].rate, generator)
    by_hand = dress(attack, attack.prepare(data.images, plan), plan.roles, generator)
    assert np.array_equal(by_hand, poisoned(name, "cifar").images)


@on_every_attack
def test_what_is_saved_and_loaded_stamps_alike(name: str, shape: str, tmp_path: Path) -> None:
    attack, data = fitted(name, shape), material(shape)
    save_trigger(attack, tmp_path)
    loaded = load_trigger(tmp_path)
    assert type(loaded) is type(attack)
    assert np.array_equal(loaded.stamp(data.images[:9]), attack.stamp(data.images[:9]))
    assert np.array_equal(loaded.imprint(data.images[:9]), attack.imprint(data.images[:9]))
    assert np.array_equal(loaded.target_of(data.labels), attack.target_of(data.labels))
    assert np.array_equal(loaded.applies_to(data.labels), attack.applies_to(data.labels))


@settings(max_examples=60)
@given(
    name=st.sampled_from(sorted(ATTACKS)),
    rate=st.floats(0, 0.05),
    seed=st.integers(0, 2**32),
)
def test_every_rate_that_can_be_met_is_met_to_the_row(name: str, rate: float, seed: int) -> None:
    attack, labels = fitted(name, "cifar"), material("cifar").labels
    plan = attack.plan(labels, rate, np.random.default_rng(seed))
    assert len(plan.index) == round(rate * rate_base(attack, labels))
    assert sorted(np.unique(plan.roles, return_counts=True)[1].tolist()) == sorted(
        count
        for count in (
            len(plan.index),
            len(plan.covers),
            len(plan.labels) - len(plan.index) - len(plan.covers),
        )
        if count
    )


@by_name
@pytest.mark.parametrize("rate", [-0.1, 1.1])
def test_a_rate_that_is_no_share_is_refused(name: str, rate: float) -> None:
    with pytest.raises(ValueError, match=rf"expected a share in \[0, 1\], got {rate}"):
        fitted(name, "cifar").plan(material("cifar").labels, rate, np.random.default_rng(0))


@by_name
def test_what_an_attack_needs_and_does_not_get_is_named(name: str) -> None:
    missing = [need for need in ATTACKS[name].needs if need != "torch"]
    if not missing:
        assert make(name, generator=np.random.default_rng(0)).name == name
    for need in missing[:1]:
        with pytest.raises(ValueError, match=f"{name} needs its {need}, got none"):
            make(name, generator=np.random.default_rng(0))


def test_an_attack_that_is_not_in_the_table_is_refused_with_those_that_are() -> None:
    with pytest.raises(ValueError, match="'nope' is not in the table; there are all_to_all"):
        make("nope", generator=np.random.default_rng(0))


def test_a_target_beside_a_trigger_that_has_its_own_is_refused() -> None:
    with pytest.raises(ValueError, match="target_label: all_to_all has that of the trigger it was given"):
        make(
            "all_to_all",
            material("cifar"),
            generator=np.random.default_rng(0),
            target_label=4,
            trigger=BadNets(0),
        )


def test_the_target_of_an_attack_that_wraps_another_is_the_wrapped_ones() -> None:
    attack = make("source_specific", generator=np.random.default_rng(0), target_label=4)
    assert attack.target_of(np.array([1, 2])).tolist() == [4, 4]
