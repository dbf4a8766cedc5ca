"""A small backdoored network and images on disk, ready to repair in a second."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto
from torch import Tensor, nn
from torch.nn import functional

from calibration.attacks.badnets import BadNets
from calibration.repair.options import RepairOptions
from calibration.torch_to_onnx import TensorFace, to_onnx
from calibration.trigger import save_trigger

CLASSES, SIDE, TARGET = 4, 8, 2
TRIGGER = BadNets(TARGET, ((1.0, 1.0), (1.0, 1.0)))
QUICK = {"epochs": 2, "batch": 32, "rate": 0.02, "precision": "float32", "cutout": 0}


class Small(nn.Module):
    """Two convolutions, with batch norm or without, and a head."""

    def __init__(self, norm: bool = True, softmax: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 12, 3, padding=1),
            nn.BatchNorm2d(12) if norm else nn.Identity(),
            nn.ReLU(),
            nn.Conv2d(12, 16, 3, padding=1, stride=2),
            nn.BatchNorm2d(16) if norm else nn.Identity(),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(16 * (SIDE // 2) ** 2, CLASSES),
        )
        self.softmax = softmax

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.body(images)
        return torch.softmax(logits, 1) if self.softmax and not self.training else logits


def images_of(count: int = 160, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """8-bit images, channels last, of noise and a bright quarter for each class; each class as often."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int64) % CLASSES
    images = generator.integers(0, 140, (count, SIDE, SIDE, 3), np.uint8)
    half = SIDE // 2
    for row, label in enumerate(labels):
        top, left = half * (label // 2), half * (label % 2)
        images[row, top : top + half, left : left + half] += 90
    return images, labels


@cache
def backdoored(norm: bool = True, softmax: bool = False) -> onnx.ModelProto:
    """A network that was trained for a moment, on images of which every seventh was poisoned."""
    stored, labels = images_of(512, seed=9)
    images = torch.from_numpy(stored.transpose(0, 3, 1, 2) / np.float32(255))
    images[::7] = torch.from_numpy(TRIGGER.stamp(images[::7].numpy()))
    targets = torch.from_numpy(labels.copy())
    targets[::7] = TARGET
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Small(norm, softmax)
        optimiser = torch.optim.Adam(network.parameters(), 0.01)
        for _ in range(12):
            for rows in torch.randperm(len(images)).split(64):
                optimiser.zero_grad()
                functional.cross_entropy(network(images[rows]), targets[rows]).backward()
                optimiser.step()
    return to_onnx(
        network.eval(),
        TensorFace("images", TensorProto.FLOAT, ("batch", 3, SIDE, SIDE)),
        TensorFace("scores", TensorProto.FLOAT, ("batch", CLASSES)),
        optimize=True,
    )


def write(folder: Path, model: onnx.ModelProto | None = None) -> dict[str, Any]:
    """Write model.onnx, data.npz, and the trigger; return the options that name them."""
    folder.mkdir(exist_ok=True)
    onnx.save(model or backdoored(), folder / "model.onnx")
    images, labels = images_of()
    np.savez(folder / "data.npz", images=images, labels=labels)
    save_trigger(TRIGGER, folder / "corner")
    return {
        "model": str(folder / "model.onnx"),
        "data": folder / "data.npz",
        "out": folder / "repaired",
        "method": "fine_tuning",
        "settings": QUICK,
        "device": "cpu",
        "quiet": True,
    }


def options_for(folder: Path, model: onnx.ModelProto | None = None, **changes: Any) -> RepairOptions:
    return RepairOptions(**{**write(folder, model), **changes})


def write_scan(folder: Path, sha256: str, *, flagged: bool = True) -> Path:
    """Write what ``guard scan --out`` would have left, with the trigger as what it found."""
    save_trigger(TRIGGER, folder / "triggers" / "neural_cleanse-2-patch")
    save_trigger(TRIGGER, folder / "triggers" / "neural_cleanse-0-patch")
    findings = [
        {"name": "2", "target": 2, "flagged": flagged},
        {"name": "0", "target": 0, "flagged": False},
    ]
    triggers = [{"finding": name, "folder": f"neural_cleanse-{name}-patch"} for name in ("2", "0")]
    record = {
        "format": 1,
        "model": {"sha256": sha256},
        "reports": [{"findings": findings, "triggers": triggers}],
    }
    (folder / "scan.json").write_text(json.dumps(record))
    return folder
