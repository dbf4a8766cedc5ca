"""What a subject does on images it was never trained on: accuracy, attack success, and what else tells."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import nn

from calibration.attacks.base import Attack
from calibration.attacks.measure import asr, robust_accuracy
from calibration.training import predict

__all__ = ["measure"]

SEED = 1
WITH_COVERS = ("wanet", "input_aware")

Images = Float32[np.ndarray, "n c h w"]
Labels = Int64[np.ndarray, " n"]


def measure(model: nn.Module, images: Images, labels: Labels, attack: Attack | None) -> dict[str, float]:
    """Return shares: ``acc`` on all images and, for an attack, everything that tells how it works.

    ``acc_non_target`` leaves the target class out, as NAD and ARGD count it.
    """
    clean = _probabilities(model, images)
    found = {"acc": _share(clean.argmax(1) == labels)}
    if attack is None:
        return found
    stamped = _probabilities(model, attack.stamp(images))
    predictions, targets = stamped.argmax(1), attack.target_of(labels)
    rows = attack.applies_to(labels)
    others = labels != targets
    found["acc_non_target"] = _share(clean.argmax(1)[others] == labels[others])
    found["asr"] = asr(predictions, labels, attack)
    found["robust_acc"] = robust_accuracy(predictions, labels, attack)
    found["mean_target_probability"] = float(stamped[rows, targets[rows]].mean())
    elsewhere = others & ~rows
    if elsewhere.any():
        found["asr_elsewhere"] = _share(predictions[elsewhere] == targets[elsewhere])
    if attack.name in WITH_COVERS:
        covered = attack.cover(images, np.random.default_rng(SEED))
        found["acc_under_covers"] = _share(_probabilities(model, covered).argmax(1) == labels)
    return found


def _probabilities(model: nn.Module, images: Images) -> Float32[np.ndarray, "n k"]:
    return torch.softmax(predict(model, torch.from_numpy(images)), dim=1).numpy()


def _share(hits: np.ndarray) -> float:
    return float(np.mean(hits))
