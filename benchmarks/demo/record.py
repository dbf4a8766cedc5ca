"""The record of how the demo's model was made."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

__all__ = ["Outcome", "write_record"]

PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime", "numpy")
COMMAND = "python -m benchmarks.train_demo_model --data FOLDER"
DATA = "CIFAR-10 official data_batch_1..4 train, data_batch_5 holdout"


@dataclass(frozen=True)
class Outcome:
    """What the training led to; rates on the whole holdout, in float32."""

    acc: float
    asr: float
    seconds: float
    threads: int
    largest_logit_difference: float


def write_record(
    path: Path, model: Path, recipe: dict[str, Any], attack: dict[str, Any], outcome: Outcome
) -> None:
    """Write setting, outcome, machine and versions as JSON."""
    record = {
        "setting": "WRN-16-1 on CIFAR-10, BadNets",
        **asdict(outcome),
        **recipe,
        "optimizer": "SGD, Nesterov momentum; bfloat16 autocast, channels last",
        "augmentation": "crop after padding by 4, horizontal flip; the patch is stamped after both",
        "attack": {"name": "badnets", **attack},
        "sha256": hashlib.sha256(model.read_bytes()).hexdigest(),
        "bytes": model.stat().st_size,
        "data": DATA,
        "command": COMMAND,
        "commit": _commit(),
        "machine": {"cpu": _cpu_name(), "cores": os.cpu_count()},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


def _commit() -> str:
    asked = ["git", "rev-parse", "HEAD"]
    done = subprocess.run(asked, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
