r"""Estimates a network's batch-norm statistics anew, after its weights were moved other than by training.

The statistics of all images are put together from those of batches, in double precision:

.. math:: \mu = \frac{1}{n} \sum_i x_i, \qquad
          \sigma^2 = \frac{1}{n - 1} \Big( \sum_i x_i^2 - n \mu^2 \Big)

with :math:`n` values to a channel. Meanwhile each batch is normalised by its own statistics, as in training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float32
from torch import Tensor, fx, nn
from torch.nn import functional

__all__ = ["re_estimate"]

_Norm = nn.modules.batchnorm._BatchNorm


@dataclass
class _Sums:
    """Of one norm's inputs, channel by channel."""

    count: int
    values: Tensor
    squares: Tensor

    def add(self, inputs: Tensor) -> None:
        flat = inputs.detach().double().transpose(0, 1).flatten(1)
        self.count += flat.shape[1]
        self.values += flat.sum(1)
        self.squares += flat.square().sum(1)

    def statistics(self) -> tuple[Tensor, Tensor]:
        mean = self.values / self.count
        spread = (self.squares - self.count * mean.square()).clamp_min(0.0)
        return mean.float(), (spread / max(self.count - 1, 1)).float()


class _Gathering(fx.Interpreter):
    """Runs a graph with each batch norm on the batch's own statistics, and sums up what goes in."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.sums: dict[str, _Sums] = {}

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a layer."""
        layer = self.fetch_attr(target)
        if not isinstance(layer, _Norm) or layer.running_mean is None:
            return super().call_module(target, args, kwargs)
        (inputs,) = (*args, *kwargs.values())
        empty = torch.zeros(inputs.shape[1], dtype=torch.float64, device=inputs.device)
        self.sums.setdefault(target, _Sums(0, empty, empty.clone())).add(inputs)
        return functional.batch_norm(inputs, None, None, layer.weight, layer.bias, True, 0.0, layer.eps)


def re_estimate(model: fx.GraphModule, images: Float32[Tensor, "n c h w"], *, batch: int = 500) -> None:
    """Set the running statistics of all batch norms, in place, to those that images have.

    Args:
        model: Left in evaluation mode; one without batch norm is left as it is.
        images: As many as there are, at least 2.
        batch: Images at a time, at most; all batches are of one size, or differ by one.
    """
    model.eval()
    if not any(isinstance(layer, _Norm) for layer in model.modules()):
        return
    gathering, device = _Gathering(model), next(model.parameters()).device
    with torch.no_grad():
        for part in torch.tensor_split(images, -(-len(images) // batch)):
            gathering.run(part.to(device))
    for name, sums in gathering.sums.items():
        norm = model.get_submodule(name)
        norm.running_mean, norm.running_var = sums.statistics()
