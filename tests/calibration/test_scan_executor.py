from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from calibration.scan.base import Arrays, Bench, Unit
from calibration.scan.executor import Keeping, LocalExecutor, gather
from tests.calibration.scan_subjects import corner_bench


@dataclass(frozen=True)
class Doubled(Unit):
    number: int

    @property
    def key(self) -> str:
        return f"doubled-{self.number}"

    @property
    def weight(self) -> int:
        return 1

    def run(self, bench: Bench) -> Arrays:
        return {"twice": np.array([2 * self.number])}


@dataclass(frozen=True, eq=False)
class Backwards(LocalExecutor):
    done: list[int] = field(default_factory=list)

    def run(self, units: Sequence[Unit]) -> Iterator[tuple[int, Arrays]]:
        assert units
        for place in reversed(range(len(units))):
            self.done.append(int(units[place].key.split("-")[1]))
            yield place, units[place].run(self.bench)


UNITS = [Doubled(number) for number in range(4)]


def numbers(found: Sequence[Arrays]) -> list[int]:
    return [int(arrays["twice"][0]) for arrays in found]


def keeping(folder: Path, digest: str = "x") -> tuple[Keeping, Backwards, list[str]]:
    inner, told = Backwards(corner_bench()), list[str]()
    return Keeping(inner, folder, digest, lambda unit: told.append(unit.key)), inner, told


def test_results_are_in_the_units_order_whatever_order_they_come_in() -> None:
    bench = corner_bench()
    assert numbers(gather(LocalExecutor(bench), UNITS)) == [0, 2, 4, 6]
    assert numbers(gather(Backwards(bench), UNITS)) == [0, 2, 4, 6]


def test_what_is_there_is_not_done_again_and_each_unit_is_told_once(tmp_path: Path) -> None:
    first, inner, told = keeping(tmp_path / "new" / "folder")
    gather(first, UNITS[:2])
    assert (inner.done, sorted(told)) == ([1, 0], ["doubled-0", "doubled-1"])
    second, inner, told = keeping(tmp_path / "new" / "folder")
    assert numbers(gather(second, UNITS[::-1])) == [6, 4, 2, 0]
    assert inner.done == [2, 3]
    assert sorted(told) == [unit.key for unit in UNITS]
    third, inner, told = keeping(tmp_path / "new" / "folder")
    assert numbers(gather(third, UNITS)) == [0, 2, 4, 6]
    assert (inner.done, len(told)) == ([], 4)
    assert {path.suffix for path in (tmp_path / "new" / "folder").iterdir()} == {".npz"}


def test_results_of_another_bench_are_not_taken(tmp_path: Path) -> None:
    gather(keeping(tmp_path, "x")[0], UNITS)
    other, inner, _ = keeping(tmp_path, "y")
    gather(other, UNITS)
    assert inner.done == [3, 2, 1, 0]


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def pickled(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, twice=np.array([{}], object))


def alone(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.ones(3))


def no_array(path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("twice.txt", "1")


def changed(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 255
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    "spoil", [half, pickled, alone, no_array, changed, lambda path: path.write_bytes(b"")]
)
def test_a_file_that_is_damaged_or_foreign_is_done_again(tmp_path: Path, spoil: object) -> None:
    gather(keeping(tmp_path)[0], UNITS[:1])
    (path,) = tmp_path.iterdir()
    spoil(path)  # type: ignore[operator]
    again, inner, told = keeping(tmp_path)
    assert numbers(gather(again, UNITS[:1])) == [0]
    assert (inner.done, told) == ([0], ["doubled-0"])
    assert numbers(gather(keeping(tmp_path)[0], UNITS[:1])) == [0]
