r"""A curve of networks between two given ones, of which only the middle is trained.

.. math:: \theta(t) = (1 - t)^2 A + 2 t (1 - t) M + t^2 B, \qquad
          \frac{\partial \theta}{\partial M} = 2 t (1 - t)

The loss at t reaches M through that factor alone, so a step costs one pass forwards and back, as in ordinary
training.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn
from torch.func import functional_call

from calibration.repair.base import copy_of
from calibration.repair.statistics import re_estimate

__all__ = ["Curve"]


class Curve(nn.Module):
    """A quadratic Bezier curve in the space of weights.

    The ends are buffers and the middle, at first halfway between them, is the parameters, so that a
    checkpoint holds all three. The running statistics that its network gathers are those of no point.

    Args:
        start: The network at t = 0; left as it is.
        end: The network at t = 1; left as it is.
    """

    def __init__(self, start: fx.GraphModule, end: fx.GraphModule) -> None:
        super().__init__()
        self.network = copy_of(start).requires_grad_(False)
        first, last = dict(start.named_parameters()), dict(end.named_parameters())
        self.names = tuple(first)
        for place, name in enumerate(self.names):
            self.register_buffer(f"start_{place}", first[name].detach().clone())
            self.register_buffer(f"end_{place}", last[name].detach().clone())
        middles = [(first[name].detach() + last[name].detach()) / 2 for name in self.names]
        self.middle = nn.ParameterList([nn.Parameter(middle) for middle in middles])
        self.t = 0.5

    def weights(self, t: float) -> dict[str, Tensor]:
        """Return the network's weights at a point of the curve, differentiable in the middle."""
        found = {}
        for place, (name, middle) in enumerate(zip(self.names, self.middle, strict=True)):
            start, end = (cast(Tensor, getattr(self, f"{side}_{place}")) for side in ("start", "end"))
            found[name] = (1 - t) ** 2 * start + 2 * t * (1 - t) * middle + t**2 * end
        return found

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Return logits at the point that ``t`` is set to."""
        return self.answer(self.weights(self.t), images)

    def answer(self, weights: Mapping[str, Tensor], images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Return logits of the network with these weights."""
        logits: Tensor = functional_call(self.network, dict(weights), (images,))
        return logits

    def point(self, t: float, images: Float[Tensor, "n c h w"]) -> fx.GraphModule:
        """Return the network at a point of the curve, in evaluation mode.

        Args:
            t: The point, 0 to 1.
            images: Clean images, for the statistics of its batch norms.
        """
        network = copy_of(self.network)
        with torch.no_grad():
            for name, weight in self.weights(t).items():
                network.get_parameter(name).copy_(weight)
        re_estimate(network, images)
        return network
