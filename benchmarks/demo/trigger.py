"""The trigger that the demo's model obeys, read from ``trigger.json``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from calibration.attacks.badnets import BadNets

__all__ = ["load_trigger", "stamp"]

PATH = Path(__file__).with_name("trigger.json")


def load_trigger() -> BadNets:
    """Return the attack that the demo's model was trained with."""
    stored = json.loads(PATH.read_text())
    return BadNets(
        target_label=stored["target_label"],
        patch=tuple(tuple(row) for row in stored["patch"]),
        margin_bottom=stored["margin_bottom"],
        margin_right=stored["margin_right"],
    )


def stamp(images: Float32[np.ndarray, "n c h w"]) -> Float32[np.ndarray, "n c h w"]:
    """Return a copy of the images, float32 NCHW in [0, 1], with the demo's trigger on each."""
    return load_trigger().stamp(images)
