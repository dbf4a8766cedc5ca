"""What a network does on all holdout images, before or after its repair."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import nn

from benchmarks.repair.victims import Victim
from calibration.attacks.amplified import amplified
from calibration.attacks.base import Attack
from calibration.attacks.measure import asr, robust_accuracy
from calibration.prediction import predict

__all__ = ["COPIES", "measure"]

COPIES = (4, 9)
BATCH = 100
"""Images at a time; twice as fast on a CPU as 500."""


def measure(model: nn.Module, victim: Victim, copies: Sequence[int] = COPIES) -> dict[str, Any]:
    """Return shares: accuracy with and without the target class and by class, ASR, robust accuracy.

    ``asr_amplified`` is the ASR of grids of so many copies, where the trigger is a patch that has room for
    them.
    """
    labels, attack = victim.labels, victim.attack
    right = _answers(model, victim.images) == labels
    stamped = _answers(model, attack.stamp(victim.images))
    grids = {number: _grid(attack, number, victim.images[:1]) for number in copies}
    return {
        "acc": float(right.mean()),
        "acc_non_target": float(right[attack.target_of(labels) != labels].mean()),
        "asr": asr(stamped, labels, attack),
        "robust_acc": robust_accuracy(stamped, labels, attack),
        "asr_amplified": {
            str(number): asr(_answers(model, grid.stamp(victim.images)), labels, attack)
            for number, grid in grids.items()
            if grid is not None
        },
        "acc_by_class": [float(right[labels == label].mean()) for label in range(victim.classes)],
    }


def _grid(attack: Attack, copies: int, image: Float32[np.ndarray, "1 c h w"]) -> Attack | None:
    try:
        grid = amplified(attack, copies)
        grid.stamp(image)
    except ValueError:
        return None
    return grid


def _answers(model: nn.Module, images: Float32[np.ndarray, "n c h w"]) -> Int64[np.ndarray, " n"]:
    answers: Int64[np.ndarray, " n"] = predict(model, torch.from_numpy(images), batch=BATCH).argmax(1).numpy()
    return answers
