"""Any classifier that was taken in, as one that gives logits of float images, channels first."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from calibration.trainable import TrainableModel

__all__ = ["Logits"]

_SMALLEST = torch.finfo(torch.float32).tiny
"""Below it a logarithm has no gradient: the smaller, the surer a model may be and still be searched."""


class Logits(nn.Module):
    """A classifier with its own layout and output behind one face.

    Args:
        model: The classifier; its weights ask for no gradients from here on.
        probabilities: Whether it gives probabilities; their logarithms are logits.
    """

    def __init__(self, model: TrainableModel, *, probabilities: bool = False) -> None:
        super().__init__()
        self.model: nn.Module = model.module.eval().requires_grad_(False)
        self.channels_last = model.signature.layout == "NHWC"
        self.probabilities = probabilities
        if not self.channels_last:
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.eval()

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Return the logits of images as the model takes them, but for the layout."""
        answers = self.model(images.permute(0, 2, 3, 1) if self.channels_last else images)
        return torch.log(answers.float().clamp_min(_SMALLEST)) if self.probabilities else answers
