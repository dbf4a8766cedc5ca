"""How a repair's workbench lays out what it is given."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from calibration.repair import workbench  # noqa: E402
from tests.calibration.repair_files import CLASSES, SIDE, images_of, options_for  # noqa: E402


def test_batch_norm_is_put_back_with_images_of_every_class_though_files_lie_class_by_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = options_for(tmp_path)
    images, labels = images_of()
    order = np.argsort(labels, kind="stable")
    np.savez(tmp_path / "data.npz", images=images[order], labels=labels[order])
    taken: list[torch.Tensor] = []
    make = workbench.make_workable

    def taking(model: Any, some: torch.Tensor, **named: Any) -> Any:
        taken.append(some)
        return make(model, some, **named)

    monkeypatch.setattr(workbench, "_STATISTICS", 12)
    monkeypatch.setattr(workbench, "make_workable", taking)
    workbench.lay_out(options)
    half = SIDE // 2
    quarters = taken[-1].unfold(2, half, half).unfold(3, half, half).mean((1, 4, 5)).flatten(1)
    assert len(taken[-1]) == 12
    assert set(quarters.argmax(1).tolist()) == set(range(CLASSES))
