from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from calibration.scan.base import Arrays, Labelled  # noqa: E402
from calibration.scan.inversion import Aim, Inversion, InversionPlan, _adam, pool_of, seed_of  # noqa: E402
from calibration.scan.state import State  # noqa: E402
from tests.calibration.backdoored_nets import CLASSES, TARGET  # noqa: E402
from tests.calibration.scan_subjects import corner_bench  # noqa: E402

PLAN = InversionPlan(batch=8, precision="float32")
AIMS = tuple(Aim(label) for label in range(CLASSES))


def run(aims: tuple[Aim, ...] = AIMS, steps: int = 30, **options: object) -> Arrays:
    plan = options.pop("plan", PLAN)
    assert isinstance(plan, InversionPlan)
    return Inversion(plan, aims, steps, 0, **options).run(corner_bench())  # type: ignore[arg-type]


def agree(first: Arrays, second: Arrays, tolerance: float = 1e-4) -> None:
    assert first.keys() == second.keys()
    for name, array in first.items():
        np.testing.assert_allclose(array, second[name], rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("form", ["patch", "addition", "waves", "warp"])
def test_an_aim_comes_to_the_same_alone_and_beside_others(form: str) -> None:
    plan = replace(PLAN, form=form)
    together, alone = run(plan=plan, judge=True), run((AIMS[2],), plan=plan, judge=True)
    agree({name: array[2:3] for name, array in together.items()}, alone, 1e-3)


def test_an_inversion_that_was_parted_goes_on_as_if_it_were_not(tmp_path: Path) -> None:
    np.savez(tmp_path / "half.npz", **run(steps=30))  # type: ignore[arg-type]
    with np.load(tmp_path / "half.npz") as half:
        begun = State.from_arrays(half)
    agree(run(steps=60), run(steps=30, begun=begun), 1e-6)


def test_one_seed_gives_one_result_and_another_another() -> None:
    agree(run(), run(), 0)
    other = Inversion(PLAN, AIMS, 30, 1).run(corner_bench())
    assert not np.allclose(other["parts.0"], run()["parts.0"])


def test_the_smallest_patch_is_the_backdoors() -> None:
    found = run(steps=150, judge=True)
    assert found["won"][TARGET]
    assert int(found["size"].argmin()) == TARGET
    assert found["size"][TARGET] < 0.6 * np.median(found["size"])
    assert found["asr"][TARGET] > 0.8


def test_the_bench_and_the_global_generator_are_left_as_they_were() -> None:
    bench, state = corner_bench(), torch.get_rng_state()
    images = bench.clean.images.clone()
    Inversion(PLAN, AIMS, 3, 0, judge=True).run(bench)
    assert torch.equal(bench.clean.images, images)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(weight.grad is None and not weight.requires_grad for weight in bench.model.parameters())


def test_a_state_to_go_on_from_is_left_as_it_was() -> None:
    begun = State.from_arrays(run(steps=5))
    before = begun.digest()
    run(steps=5, begun=begun)
    assert begun.digest() == before


# torch.optim.Adam's own results are the reference.
def test_adam_is_torchs_step_by_step() -> None:
    state, generator = State.from_arrays(run(steps=1)), torch.Generator().manual_seed(3)
    zeros = tuple(torch.zeros_like(part) for part in state.parts)
    state = replace(state, first=zeros, second=zeros)
    own = [part.clone().requires_grad_() for part in state.parts]
    optimiser = torch.optim.Adam(own, 0.1, betas=(0.5, 0.9), eps=1e-8)
    for step in range(1, 8):
        gradients = [torch.randn(part.shape, generator=generator) for part in own]
        for part, gradient in zip(own, gradients, strict=True):
            part.grad = gradient
        optimiser.step()
        parts, first, second = _adam(state, gradients, torch.full((CLASSES,), step), 0.1)
        state = replace(state, parts=parts, first=first, second=second)
        for mine, torchs in zip(parts, own, strict=True):
            torch.testing.assert_close(mine, torchs.detach(), rtol=1e-5, atol=1e-6)


def test_the_weight_rises_with_success_and_falls_faster_without() -> None:
    state = replace(State.from_arrays(run(steps=1)), success=torch.tensor([1, 0, 1, 0, 0.95]))
    now = Inversion(PLAN, AIMS, 1, 0)._updated(
        replace(state, weight=torch.ones(5), won=torch.zeros(5, dtype=torch.bool)),
        [torch.zeros_like(part) for part in state.parts],
        torch.ones(5),
        torch.tensor([1.0, 1.0, 0.0, 0.0, 1.0]),  # smoothed: 1, .2, .8, 0, .96
        torch.full((5,), 7.0),
    )
    torch.testing.assert_close(now.success, torch.tensor([1, 0.2, 0.8, 0, 0.96]))
    down = 1.15**-1.5
    torch.testing.assert_close(now.weight, torch.tensor([1.15, down, down, down, 1.15]))
    assert now.won.tolist() == [True, False, False, False, True]
    assert now.size.tolist() == [7.0] * 5
    assert now.since.tolist() == [0, *(state.since[1:4] + 1).tolist(), 0]


def test_an_aim_stops_when_it_no_longer_gets_smaller() -> None:
    begun = replace(
        State.from_arrays(run(steps=2)),
        won=torch.tensor([True] * 5),
        rose=torch.tensor([True, True, False, True, True]),
        fell=torch.tensor([True, True, False, True, True]),
        since=torch.tensor([100, 99, 100, 0, 100]),
        size=torch.zeros(5),
    )
    found = run(steps=3, begun=begun)
    assert found["steps"].tolist() == [2, 3, 5, 5, 2]


def test_the_key_changes_with_everything_and_is_stable() -> None:
    unit = Inversion(PLAN, AIMS, 5, 0)
    begun = State.from_arrays(run(steps=1))
    others = [
        *(replace(unit, plan=replace(PLAN, **change)) for change in (
            {"form": "warp"}, {"batch": 9}, {"goal": 0.9}, {"up": 1.2}, {"patience": 9},
            {"precision": "bfloat16"},
        )),
        replace(unit, aims=AIMS[1:]), replace(unit, aims=(Aim(0, 1), *AIMS[1:])), replace(unit, steps=6),
        replace(unit, seed=1), replace(unit, judge=True), replace(unit, begun=begun),
        replace(unit, begun=replace(begun, success=begun.success + 1)),
    ]  # fmt: skip
    keys = [one.key for one in (unit, *others)]
    assert len(set(keys)) == len(keys)
    assert keys == [one.key for one in (unit, *others)]
    assert all(set(key) <= set("abcdefghijklmnopqrstuvwxyz0123456789.-") for key in keys)
    assert unit.weight == 5 * 5 * 8


def test_an_aim_is_tried_on_other_classes_or_on_its_source_alone() -> None:
    images = Labelled(torch.zeros(4, 1, 2, 2), torch.tensor([0, 1, 2, 1]))
    assert pool_of(images, Aim(1)).tolist() == [0, 2]
    assert pool_of(images, Aim(0, 1)).tolist() == [1, 3]
    assert len(pool_of(images, Aim(0, 7))) == 0


def test_seeds_are_the_same_everywhere() -> None:
    assert seed_of(0, "images", Aim(3), 5) == seed_of(0, "images", Aim(3), 5)
    assert len({seed_of(0, "images", Aim(3), step) for step in range(100)}) == 100


@pytest.mark.parametrize(
    "options", [{"form": "dots"}, {"batch": 0}, {"patience": 0}, {"goal": 0.0}, {"goal": 1.1}, {"up": 1.0}]
)
def test_plans_without_meaning_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))}.*expected"):
        InversionPlan(**options)  # type: ignore[arg-type]


def test_states_are_parted_and_joined_again() -> None:
    state = State.from_arrays(run(steps=2))
    assert State.join([state.rows([0, 1]), state.rows([2, 3, 4])]).digest() == state.digest()
    assert state.put([3, 1], state.rows([3, 1])).digest() == state.digest()
    swapped = state.put([0, 1], state.rows([1, 0]))
    assert torch.equal(swapped.parts[0][0], state.parts[0][1])
    assert swapped.digest() != state.digest()
    assert len(swapped) == CLASSES
