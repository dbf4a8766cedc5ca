from collections.abc import Iterator, Sequence

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from calibration.scan import search as searching  # noqa: E402
from calibration.scan.base import Arrays, Unit  # noqa: E402
from calibration.scan.executor import Executor, LocalExecutor  # noqa: E402
from calibration.scan.inversion import Aim, InversionPlan  # noqa: E402
from calibration.scan.search import Searched, search  # noqa: E402
from tests.calibration.backdoored_nets import CLASSES, TARGET  # noqa: E402
from tests.calibration.scan_subjects import corner_bench  # noqa: E402

PLAN = InversionPlan(batch=8, precision="float32")


class Backwards(LocalExecutor):
    def run(self, units: Sequence[Unit]) -> Iterator[tuple[int, Arrays]]:
        for place in reversed(range(len(units))):
            yield place, units[place].run(self.bench)


def found(
    executor: Executor | None = None, *, steps: int = 30, few: int = 8, reference: int = 12
) -> Searched:
    bench, aims = corner_bench(), [Aim(label) for label in range(CLASSES)]
    return search(
        bench, aims, PLAN, steps=steps, finalists=few, reference=reference, seed=0,
        executor=executor or LocalExecutor(bench),
    )  # fmt: skip


def agree(first: Searched, second: Searched) -> None:
    assert first.aims == second.aims
    np.testing.assert_allclose(first.sizes, second.sizes, rtol=1e-3)
    np.testing.assert_allclose(first.asr, second.asr, atol=0.05)
    np.testing.assert_array_equal(first.reference, second.reference)
    assert first.images == second.images


def test_neither_the_order_nor_the_chunks_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = found()
    monkeypatch.setattr(searching, "VALUES_AT_ONCE", 2 * 8 * 64)  # two aims a call
    agree(whole, found())
    agree(whole, found(Backwards(corner_bench())))


def test_of_few_aims_all_are_reference_and_every_image_is_counted() -> None:
    whole = found()
    assert whole.reference.all()
    assert (whole.looked_at, whole.images) == (CLASSES, CLASSES * 30 * 8)
    assert whole.steps.tolist() == [30] * CLASSES


def test_of_many_the_likeliest_go_on_beside_a_sample() -> None:
    whole = found(steps=60, few=1, reference=2)  # 5 aims of 30 steps with 4 images, then 3 with 8
    assert len(whole.aims) == 3
    assert TARGET in [aim.target for aim in whole.aims]
    assert whole.reference.sum() == 2
    assert whole.images == 5 * 30 * 4 + 3 * 30 * 8
    assert whole.steps.tolist() == [60] * 3
    assert whole.looked_at == CLASSES
    agree(whole, found(Backwards(corner_bench()), steps=60, few=1, reference=2))
