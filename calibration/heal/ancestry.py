"""Which images the model learned from when it was healed before: they may not set its next boundary."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from calibration.data import ImageSet
from calibration.errors import OptionError
from calibration.heal.parts import order_of
from calibration.heal.publishing import LINEAGE

__all__ = ["require_unlearned"]


def require_unlearned(calibrate: Int64[np.ndarray, " c"], images: ImageSet, artifact: Path) -> list[str]:
    """Refuse to calibrate with images that the model was repaired with.

    Args:
        calibrate: Rows of the images to calibrate with.
        images: All.
        artifact: Directory of the model; its ``heal.json``, if there is one, says what was learned from.

    Returns:
        What a reader should know.

    Raises:
        OptionError: If the model learned from some of them: its certified rate would be none.
    """
    try:
        lineage = json.loads((artifact / LINEAGE).read_text())
        data, seed = lineage["data"], int(lineage["seed"])
        learned, same = int(data["learn"]) + int(data["copies"]), data["sha256"] == images.digest
        rows = order_of(len(images), seed)[len(images) - learned :] if same else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []
    if rows is None:
        return [
            "the model was healed before, with other images: none that it learned from may be among these"
        ]
    shared = int(np.isin(calibrate, rows).sum())
    if shared:
        raise OptionError(
            f"the model was healed before and learned from {shared} of the {len(calibrate)} images that "
            f"would calibrate it; give --seed {seed} and the shares of then, or images it never saw"
        )
    return []
