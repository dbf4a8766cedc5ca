import numpy as np
import pytest

torch = pytest.importorskip("torch")

from calibration.attacks.badnets import BadNets  # noqa: E402
from calibration.attacks.dressing import dressing  # noqa: E402
from calibration.attacks.patch import PIXEL  # noqa: E402
from calibration.attacks.source_specific import SourceSpecific  # noqa: E402
from calibration.attacks.wanet import WaNet  # noqa: E402

LABELS = np.arange(40, dtype=np.int64) % 4


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_poisoned_and_cover_rows_of_a_batch_are_stamped_wherever_they_stand_in_it() -> None:
    attack = SourceSpecific(BadNets(0, PIXEL), sources=(1,))
    plan = attack.plan(LABELS, 0.1, np.random.default_rng(0))
    rows = torch.randperm(40, generator=seeded(0))
    batch = (rows[:, None, None, None] / 50).expand(-1, 1, 2, 2).contiguous()
    dressed = dressing(attack, plan)(batch, rows, seeded(1))
    stamped = dressed[:, 0, 1, 1] == 1
    assert sorted(rows[stamped].tolist()) == sorted([*plan.index.tolist(), *plan.covers.tolist()])
    assert torch.equal(dressed[:, 0, 0], batch[:, 0, 0])
    assert torch.equal(dressed[~stamped], batch[~stamped])


def test_a_batch_without_such_rows_is_handed_back() -> None:
    plan = BadNets(0).plan(LABELS, 0.0, np.random.default_rng(0))
    batch = torch.zeros(3, 1, 4, 4)
    assert dressing(BadNets(0), plan)(batch, torch.tensor([1, 2, 3]), seeded(0)) is batch


def test_the_batch_that_came_in_is_not_changed() -> None:
    plan = BadNets(0).plan(LABELS, 0.5, np.random.default_rng(0))
    batch = torch.zeros(40, 1, 4, 4).to(memory_format=torch.channels_last)
    dressed = dressing(BadNets(0), plan)(batch, torch.arange(40), seeded(0))
    assert batch.sum() == 0
    assert dressed.sum() == 20 * 5  # a 3x3 checkerboard has five white pixels


def test_noise_on_covers_comes_from_the_generator() -> None:
    attack = WaNet(0, np.ones((2, 4, 4), np.float32))
    finish = dressing(attack, attack.plan(LABELS, 0.25, np.random.default_rng(0)))
    batch, rows = torch.rand(40, 1, 8, 8, generator=seeded(0)), torch.arange(40)
    assert torch.equal(finish(batch, rows, seeded(1)), finish(batch, rows, seeded(1)))
    assert not torch.equal(finish(batch, rows, seeded(1)), finish(batch, rows, seeded(2)))
