"""The images that a stage says it sent through the network, against those that were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import fx, nn  # noqa: E402

from calibration.repair.base import Repair, Sitting  # noqa: E402
from calibration.repair.fine_tuning import FineTuning  # noqa: E402
from calibration.repair.ft_sam import SharpnessAwareFineTuning  # noqa: E402
from calibration.repair.i_bau import ImplicitUnlearning  # noqa: E402
from calibration.repair.sau import SharedAdversarialUnlearning  # noqa: E402
from tests.contract.repair_subjects import SHAPES, network_of, supplies_of  # noqa: E402

BATCH = 16
ALIKE: dict[str, Any] = {"batch": BATCH, "precision": "float32"}


@contextmanager
def watching() -> Iterator[list[int]]:
    """Note the batches that graphs whose weights learn are sent, such that a gradient can come back."""
    seen: list[int] = []

    def note(module: nn.Module, given: tuple[Any, ...]) -> None:
        if isinstance(module, fx.GraphModule) and torch.is_grad_enabled():
            seen.extend([len(given[0])] if next(module.parameters()).requires_grad else [])

    handle = nn.modules.module.register_module_forward_pre_hook(note)
    try:
        yield seen
    finally:
        handle.remove()


@pytest.mark.parametrize(
    ("repair", "searched"),
    [
        (FineTuning(epochs=2, **ALIKE), 0),
        (SharpnessAwareFineTuning(epochs=2, **ALIKE), 0),
        (SharedAdversarialUnlearning(epochs=2, search_steps=0, **ALIKE), 0),
        (ImplicitUnlearning(rounds=2, **ALIKE), 2),
    ],
    ids=["fine_tuning", "ft_sam", "sau", "i_bau"],
)
def test_every_image_of_every_pass_is_counted(repair: Repair, searched: int) -> None:
    shape = SHAPES["residual"]
    supplies = supplies_of(shape)
    with watching() as seen:
        done = repair.repair(
            network_of(shape), supplies, generator=torch.Generator().manual_seed(5), sitting=Sitting()
        )
    assert done.images == sum(seen) - searched * len(supplies.train)
    steps = 2 * (len(supplies.train) // BATCH)
    assert done.images == steps * BATCH * (1 if isinstance(repair, FineTuning) else 2)
