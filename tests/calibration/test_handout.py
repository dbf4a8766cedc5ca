from dataclasses import dataclass

import pytest

pytest.importorskip("torch")

from hypothesis import given
from hypothesis import strategies as st

from calibration.errors import ClusterError
from calibration.scan.base import Arrays, Bench, Unit
from calibration.scan.handout import Handout


@dataclass(frozen=True)
class Weighing(Unit):
    grams: int

    @property
    def key(self) -> str:
        return f"{self.grams} g"

    @property
    def weight(self) -> int:
        return self.grams

    def run(self, bench: Bench) -> Arrays:
        raise NotImplementedError


def handout(*weights: int, tries: int = 2) -> Handout:
    return Handout([Weighing(weight) for weight in weights], tries)


def rest(units: Handout) -> list[int]:
    return [units.take() for _ in range(len(units))]


@given(st.lists(st.integers(0, 9)))
def test_the_heaviest_goes_first_and_of_equals_the_first(weights: list[int]) -> None:
    expected = sorted(range(len(weights)), key=lambda place: -weights[place])
    assert rest(handout(*weights)) == expected


def test_a_lost_unit_goes_before_lighter_ones() -> None:
    units = handout(1, 5, 3)
    assert [units.take(), units.take()] == [1, 2]
    units.lose(1, "killed")
    assert rest(units) == [1, 0]


def test_a_unit_lost_too_often_is_named_with_the_reason() -> None:
    units = handout(7, tries=2)
    units.lose(units.take(), "node lost")
    with pytest.raises(ClusterError, match=r"unit 7 g: .* got 2 lost in a row, the last: out of memory"):
        units.lose(units.take(), "out of memory")


def test_losses_are_counted_for_each_unit_by_itself() -> None:
    units = handout(2, 1, tries=2)
    units.lose(units.take(), "killed")
    units.take()
    units.lose(units.take(), "killed")
    assert rest(units) == [1]
