"""A network with a known backdoor, its artifact, clean images and suspects on disk, ready to heal."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import TensorProto

from calibration.calibrate import calibrate
from calibration.heal.options import HealOptions, heal_options
from calibration.options import CalibrateOptions
from calibration.torch_to_onnx import TensorFace, to_onnx
from tests.calibration.backdoored_nets import CLASSES, SIDE, CornerNet, striped

COUNT = 300
CHECK = {"overlays": 4, "frr": 0.1, "confidence": 0.9}
SCAN = {"neural_cleanse": {"steps": 150, "batch": 16}}
WEAK = {"epochs": 6, "batch": 10, "rate": 0.001, "share": 0.5, "precision": "float32"}
"""Unlearns the trigger that was found, and hardly the backdoor: a scan finds the next trigger."""
STRONG = {**WEAK, "epochs": 10, "rate": 0.003}


@cache
def corner_model(gain: float = 40.0) -> bytes:
    """The network with a backdoor in its lower right corner, as ONNX; none with a gain of 0."""
    import torch

    proto = to_onnx(
        torch.fx.symbolic_trace(CornerNet(gain)),
        TensorFace("images", TensorProto.FLOAT, ("batch", 1, SIDE, SIDE)),
        TensorFace("scores", TensorProto.FLOAT, ("batch", CLASSES)),
        optimize=True,
    )
    return proto.SerializeToString(deterministic=True)


def clean(count: int = COUNT, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Images from 0 to 1, channels first, and their labels."""
    images, labels = striped(count, seed)
    return images.numpy(), labels.numpy()


def cornered(images: np.ndarray) -> np.ndarray:
    """The images with the trigger on."""
    stamped = images.copy()
    stamped[:, :, -2:, -2:] = 1
    return stamped


def write(folder: Path, gain: float = 40.0) -> Path:
    """Write model.onnx, clean.npz and an artifact; return its model directory."""
    folder.mkdir(exist_ok=True)
    (folder / "model.onnx").write_bytes(corner_model(gain))
    images, labels = clean()
    np.savez(folder / "clean.npz", images=images.transpose(0, 2, 3, 1), labels=labels)
    calibrate(
        CalibrateOptions(
            model=folder / "model.onnx",
            data=folder / "clean.npz",
            out=folder / "repository" / "corner",
            device="cpu",
            threads=1,
            quiet=True,
            seed=3,
            blend="half_clip",
            capabilities=(),
            **CHECK,  # type: ignore[arg-type]
        )
    )
    return folder / "repository" / "corner"


def options_for(folder: Path, **changes: Any) -> HealOptions:
    """What heals the artifact that :func:`write` left; some of it changed."""
    given: dict[str, Any] = {
        "model": str(folder / "repository" / "corner"),
        "data": folder / "clean.npz",
        "out": folder / "work",
        "method": ("unlearning",),
        "scan": SCAN,
        "repair": {"unlearning": STRONG},
        "gates": {"max_accuracy_drop": 0.15},
        "images": 60,
        "threads": 1,
        "device": "cpu",
        "quiet": True,
    }
    return heal_options({**given, **changes})


def answers(version: Path, images: np.ndarray) -> np.ndarray:
    """The classes that a version gives images, channels first."""
    session = ort.InferenceSession(version / "model.onnx", providers=["CPUExecutionProvider"])
    scores = session.run(None, {"images": images.astype(np.float32)})[0]
    predicted: np.ndarray = np.asarray(scores).argmax(axis=1)
    return predicted


def suspects(path: Path, labels: np.ndarray | None = None, count: int = 30) -> Path:
    """Write triggered inputs, as a client sent them."""
    images, _ = clean(count, seed=7)
    arrays = {} if labels is None else {"labels": labels}
    np.savez(path, images=cornered(images).astype(np.float32), scores=np.ones(count), **arrays)
    return path
