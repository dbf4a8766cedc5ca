"""How the repairs' contract is run: every repair, on every shape that it takes, once where once is enough."""

from __future__ import annotations

from collections.abc import Collection
from functools import cache

import pytest
import torch

from calibration.checkpoint import fingerprint
from calibration.repair.base import RepairResult, Sitting
from calibration.repair.table import REPAIRS
from tests.contract.repair_subjects import ROWS, SHAPES, UNFIT, network_of, quick, supplies_of

by_name = pytest.mark.parametrize("name", REPAIRS)


def on_shapes(slow: Collection[str] = ()) -> pytest.MarkDecorator:
    """Try every repair on every shape that it takes, on some of them among the slow tests only."""
    return pytest.mark.parametrize(
        ("name", "shape"),
        [
            pytest.param(name, shape, id=f"{name}-{shape}", marks=[pytest.mark.slow] if shape in slow else [])
            for name in REPAIRS
            for shape in SHAPES
            if shape not in ROWS[name].refuses
        ],
    )


on_every_shape = on_shapes()


def seeded(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def run(name: str, shape: str = "residual", sitting: Sitting | None = None, seed: int = 5) -> RepairResult:
    chosen = {**SHAPES, **UNFIT}[shape]
    return quick(name).repair(
        network_of(chosen), supplies_of(chosen), generator=seeded(seed), sitting=sitting or Sitting()
    )


@cache
def result(name: str, shape: str) -> RepairResult:
    return run(name, shape)


def weights(model: torch.nn.Module) -> str:
    return fingerprint(model.state_dict().values())


def tensors(model: torch.nn.Module) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (each.shape, each.dtype) for name, each in model.state_dict().items()}
