"""A small model and synthetic images on disk, ready to scan in a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx

from calibration.scan.options import ScanOptions
from tests.tiny_models import linear_classifier, linear_weights

SHAPE = (3, 8, 8)
QUICK = "[neural_cleanse]\nsteps = 6\nbatch = 4\n"


def answers(images: np.ndarray, classes: int = 10) -> np.ndarray:
    """What the linear classifier says of stored 8-bit images."""
    weight, bias = linear_weights(SHAPE, classes)
    flat = (images / 255).astype(np.float32).transpose(0, 3, 1, 2).reshape(len(images), -1)
    return (flat @ weight + bias).argmax(1).astype(np.int64)


def images_of(count: int = 60, seed: int = 5) -> np.ndarray:
    """Noise, so that the linear classifier answers with every class."""
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), np.uint8)


def write(folder: Path, model: onnx.ModelProto | None = None, **arrays: np.ndarray) -> dict[str, Any]:
    """Write model.onnx, data.npz and quick.toml; return the options that name them."""
    folder.mkdir(exist_ok=True)
    onnx.save(model or linear_classifier(SHAPE), folder / "model.onnx")
    images = images_of()
    np.savez(folder / "data.npz", **(arrays or {"images": images, "labels": answers(images)}))
    (folder / "quick.toml").write_text(QUICK)
    return {
        "model": str(folder / "model.onnx"),
        "data": folder / "data.npz",
        "out": folder / "scan",
        "scanners": ("neural_cleanse",),
        "settings": {"neural_cleanse": {"steps": 6, "batch": 4}},
        "quiet": True,
    }


def options_for(folder: Path, model: onnx.ModelProto | None = None, **changes: Any) -> ScanOptions:
    return ScanOptions(**{**write(folder, model), **changes})
