"""Reading CIFAR-10 from the data folder, through the ``load.py`` that lies in it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8

__all__ = ["read_split"]


def read_split(
    data: Path, split: str
) -> tuple[UInt8[np.ndarray, "n h w c"], Int64[np.ndarray, " n"], list[str]]:
    """Return the images, labels and class names of a CIFAR-10 split.

    Raises:
        FileNotFoundError: If the folder has no ``load.py``.
    """
    path = data / "load.py"
    if not path.is_file():
        raise FileNotFoundError(f"{data}: expected load.py and cifar10_*.npz in it, got no load.py")
    spec = importlib.util.spec_from_file_location("demo_source_load", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    images, labels, class_names = module.load("cifar10", split)
    return images, labels, class_names
