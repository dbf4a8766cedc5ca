import pytest

torch = pytest.importorskip("torch")

from calibration.schedules import Constant, Cosine, HoldThenFall, OneCycle, Schedule, Steps  # noqa: E402


def factors(schedule: Schedule, steps: int) -> list[float]:
    return [schedule.factor(step, steps) for step in range(steps)]


@pytest.mark.parametrize(("rising", "steps"), [(0.2, 100), (0.3, 37), (0.5, 10)])
def test_one_cycle_is_the_one_of_torch(rising: float, steps: int) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 1.0)
    peer = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 1.0, total_steps=steps, pct_start=rising, cycle_momentum=False
    )
    expected = []
    for _ in range(steps):
        expected.append(peer.get_last_lr()[0])
        optimizer.step()
        peer.step() if len(expected) < steps else None
    assert factors(OneCycle(rising), steps) == pytest.approx(expected, abs=1e-9)


def test_cosine_is_half_a_cosine() -> None:
    assert factors(Cosine(), 4) == pytest.approx([1.0, 0.853553, 0.5, 0.146447], abs=1e-6)


def test_steps_drop_at_their_milestones() -> None:
    assert factors(Steps((0.5, 0.75), 0.1), 8) == pytest.approx([1] * 4 + [0.1] * 2 + [0.01] * 2)


def test_a_constant_is_constant() -> None:
    assert factors(Constant(), 3) == [1.0] * 3


def test_hold_then_fall_holds_falls_along_a_line_and_keeps_what_is_left() -> None:
    expected = [1.0] * 6 + [0.7525, 0.505, 0.2575, 0.01]
    assert factors(HoldThenFall(0.5, 0.9, 0.01), 10) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    "schedule", [Constant(), Cosine(), Steps(), OneCycle(), HoldThenFall()], ids=lambda s: s.name
)
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 200])
def test_factors_stay_between_0_and_1_however_few_steps_there_are(schedule: Schedule, steps: int) -> None:
    assert all(0 <= factor <= 1 for factor in factors(schedule, steps))


@pytest.mark.parametrize("milestones", [(0.5, 0.5), (0.0,), (1.0,), (0.7, 0.3)])
def test_milestones_that_do_not_rise_within_the_training_are_refused(milestones: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"^milestones: expected rising shares"):
        Steps(milestones)


@pytest.mark.parametrize("rising", [0.0, 1.0, -0.2])
def test_a_cycle_that_only_rises_or_only_falls_is_refused(rising: float) -> None:
    with pytest.raises(ValueError, match=r"^rising: expected a share"):
        OneCycle(rising)


@pytest.mark.parametrize(("hold", "fall"), [(0.5, 0.5), (-0.1, 0.5), (0.5, 1.1)])
def test_a_fall_that_does_not_come_after_the_hold_is_refused(hold: float, fall: float) -> None:
    with pytest.raises(ValueError, match=r"^hold, fall: expected shares"):
        HoldThenFall(hold, fall)
