"""What a model leaves of its own predictions when it is asked about changed copies of the inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float32, Int64

from calibration.capabilities.base import Bench
from guard.arrays import Images, Probabilities
from guard.detection.capabilities.unit_range import from_unit, to_unit
from guard.runtime.onnx_classifier import OnnxClassifier

__all__ = ["Change", "kept_by", "kept_under"]

Change = Callable[[Float32[np.ndarray, "n c h w"]], Float32[np.ndarray, "n c h w"]]
"""Makes copies of images within [0, 1]; an image's copy depends on nothing else."""


def kept_under(bench: Bench, images: Images, changes: Sequence[Change]) -> Float32[np.ndarray, "n s"]:
    """Return the probability of each input's own class, for each of its copies.

    Args:
        bench: With the model.
        images: Inputs in its input space.
        changes: What makes the copies.
    """
    value_range, datatype = bench.source.value_range, bench.source.datatype
    unit = to_unit(images, value_range)
    with bench.open() as classifier:
        predicted = bench.predicted(classifier, images)
        columns = [
            kept_by(bench, classifier, from_unit(change(unit), value_range, datatype), predicted)
            for change in changes
        ]
    return np.stack(columns, axis=1)


def kept_by(
    bench: Bench, classifier: OnnxClassifier, images: Images, predicted: Int64[np.ndarray, " n"]
) -> Float32[np.ndarray, " n"]:
    """Return the probability of these classes by a model."""
    probabilities: Probabilities = bench.probabilities(classifier, images)
    kept: Float32[np.ndarray, " n"] = probabilities[np.arange(len(images)), predicted]
    return kept
