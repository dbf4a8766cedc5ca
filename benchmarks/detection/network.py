"""A subject in ONNX Runtime, on one thread: what it says of images, alone and under overlays."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import onnxruntime as ort
from jaxtyping import Float32

from guard.arrays import Images
from guard.detection.entropy import softmax
from guard.detection.superimpose import BLEND_RULES, ValueRange, superimpose

__all__ = ["Network", "blends"]

_BATCH = 32
_WHOLE = ValueRange((0.0,), (1.0,), 0)


class Network:
    """A model file, asked for probabilities."""

    def __init__(self, path: Path) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name

    @property
    def classes(self) -> int:
        """How many classes it tells apart."""
        return int(self._session.get_outputs()[0].shape[1])

    def probabilities(self, images: Images) -> Float32[np.ndarray, "n k"]:
        """Return the model's probabilities."""
        parts = [self._of_batch(images[start : start + _BATCH]) for start in range(0, len(images), _BATCH)]
        return np.concatenate(parts)

    def under(self, images: Images, overlays: Images, rule: str) -> Float32[np.ndarray, "n m k"]:
        """Return them for every image under every overlay."""
        parts = [self.probabilities(blends(image[None], overlays, rule)) for image in images]
        return np.stack(parts) if parts else np.empty((0, len(overlays), 0), np.float32)

    def seconds_a_pass(self, images: Images, overlays: Images, rule: str) -> tuple[float, float]:
        """Return the processor time of one image by itself, and of one blend, made and asked."""
        started = time.process_time()
        self.probabilities(images)
        alone = time.process_time() - started
        self.under(images, overlays, rule)
        under = time.process_time() - started - alone
        return alone / len(images), under / (len(images) * len(overlays))

    def _of_batch(self, images: Images) -> Float32[np.ndarray, "n k"]:
        probabilities: np.ndarray = softmax(self._session.run(None, {self._input: images})[0])
        return probabilities


def blends(images: Images, overlays: Images, rule: str) -> Images:
    """Return each image under each overlay, one after another."""
    made = superimpose(images, overlays, BLEND_RULES[rule], _WHOLE)
    return made.reshape(-1, *images.shape[1:])
