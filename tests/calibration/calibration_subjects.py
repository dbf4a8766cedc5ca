"""A small model and synthetic images on disk, ready to calibrate, and plain numpy's answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx

from calibration.options import CalibrateOptions
from guard.artifact import Artifact
from guard.detection.entropy import entropy_of_logits
from guard.detection.superimpose import superimpose
from tests.tiny_models import linear_classifier, linear_weights

SHAPE = (3, 8, 8)
N_IMAGES, N_OVERLAYS = 360, 8


def pixels(n: int = N_IMAGES, seed: int = 5) -> np.ndarray:
    """Synthetic images: a smooth pattern a class, and noise."""
    generator = np.random.default_rng(seed)
    base = np.repeat(np.repeat(generator.uniform(0, 255, (10, 4, 4, 3)), 2, axis=1), 2, axis=2)
    noise = generator.normal(0, 40, (n, 8, 8, 3))
    return np.clip(base[np.arange(n) % 10] + noise, 0, 255).astype(np.uint8)


def write_subject(folder: Path, model: onnx.ModelProto | None = None, **arrays: np.ndarray) -> dict[str, Any]:
    """Write model.onnx and data.npz; return the options that name them."""
    onnx.save(model or linear_classifier(SHAPE, gain=0.5), folder / "model.onnx")
    np.savez(folder / "data.npz", **(arrays or {"images": pixels()}))
    return {
        "model": folder / "model.onnx",
        "data": folder / "data.npz",
        "out": folder / "repository" / "tiny",
        "overlays": N_OVERLAYS,
        "detector": "strip",
        "capabilities": (),
        "seed": 11,
        "device": "cpu",
        "threads": 1,
        "quiet": True,
    }


def options_for(folder: Path, model: onnx.ModelProto | None = None, **changes: Any) -> CalibrateOptions:
    """Write a subject and return its options, some of them changed."""
    return CalibrateOptions(**{**write_subject(folder, model), **changes})


def linear_logits(rows: np.ndarray, gain: float = 0.5) -> np.ndarray:
    """What the linear classifier answers, by numpy; rows are channels first, in the unit range."""
    weight, bias = linear_weights(SHAPE, gain=gain)
    return rows.reshape(len(rows), -1).astype(np.float64) @ weight + bias


def reference_means(artifact: Artifact, stored: np.ndarray) -> np.ndarray:
    """Mean entropy of every image that is no overlay, ascending, by numpy alone."""
    source = artifact.profile.input
    rows = model_rows(artifact, stored)
    keys = {overlay.tobytes() for overlay in artifact.overlays}
    rows = np.stack([row for row in rows if row.tobytes() not in keys])
    blends = superimpose(rows, artifact.overlays, artifact.profile.check.blend_rule, source.value_range)
    flat = blends.reshape(-1, *source.shape).astype(np.float64)
    if source.datatype == "UINT8":
        flat = flat / 255.0
    if source.layout == "NHWC":
        flat = flat.transpose(0, 3, 1, 2)
    entropies = entropy_of_logits(linear_logits(flat)).reshape(len(rows), -1)
    return np.sort(entropies.mean(axis=1))


def model_rows(artifact: Artifact, stored: np.ndarray) -> np.ndarray:
    """The stored images as the linear model takes them."""
    source = artifact.profile.input
    rows = stored if source.layout == "NHWC" else stored.transpose(0, 3, 1, 2)
    if source.datatype == "UINT8":
        return np.ascontiguousarray(rows)
    unit = rows.astype(np.float32) * np.float32(1 / 255)
    return np.ascontiguousarray(unit.astype(artifact.overlays.dtype))
