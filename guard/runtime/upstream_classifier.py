"""A classifier that asks a model server: blends are made here, predictions there, entropies here again.

It does with numpy what the check graph does on the device, so that a model which is served elsewhere is
checked by the very network that answers.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from guard.arrays import EntropyBits, Images, Logits, Overlays, PairIndex
from guard.artifact.profile import InputSpec, OutputSpec
from guard.detection.entropy import entropy_of_logits, entropy_of_probabilities
from guard.detection.superimpose import BlendRule, blend_pairs

__all__ = ["Predict", "UpstreamClassifier"]

Predict = Callable[[Images], Logits]
"""Returns the model's output for each image, float32; blocks, and is never called on the event loop."""


class UpstreamClassifier:
    """Checks images by a model that is somewhere else, otherwise as ``OnnxClassifier`` does.

    Args:
        predict: Asks the model server; it keeps to the server's batch limit.
        source: The model's image input.
        sink: Its class output.
        overlays: Clean images in the model's input space, in the plan's order.
        blend: The blend rule.
    """

    device = "upstream"

    def __init__(
        self, predict: Predict, *, source: InputSpec, sink: OutputSpec, overlays: Overlays, blend: BlendRule
    ) -> None:
        self._predict = predict
        self._value_range = source.value_range
        self._entropy = entropy_of_logits if sink.kind == "logits" else entropy_of_probabilities
        self._overlays = overlays
        self._blend = blend

    def logits(self, images: Images) -> Logits:
        """Return the model's raw output for each image: logits or probabilities, as float32."""
        return self._predict(images)

    def check(
        self, images: Images, image_index: PairIndex, overlay_index: PairIndex
    ) -> tuple[Logits, EntropyBits]:
        """Return the model's output and its entropy, in bits, for each (image, overlay) pair.

        Args:
            images: Rows in the model's input space, layout and dtype.
            image_index: Image of each pair.
            overlay_index: Overlay of each pair; -1 for the image itself.

        Raises:
            UpstreamError: If the model server cannot be asked, or answers otherwise than the profile says.
            UpstreamDeadlineError: If it takes too long.
            UpstreamStatusError: If it refuses.
        """
        pairs = blend_pairs(
            images, self._overlays, image_index, overlay_index, self._blend, self._value_range
        )
        logits = self._predict(pairs)
        with np.errstate(
            invalid="ignore", over="ignore"
        ):  # what is not finite gives NaN, which fails the check
            return logits, self._entropy(logits).astype(np.float32)

    def close(self) -> None:
        """Do nothing: the connection belongs to whoever made it."""
