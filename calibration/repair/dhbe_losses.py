r"""What the three nets of data-free backdoor erasing learn by, and what draws an image generator to data.

With :math:`x` generated images, :math:`x'` the same with a generated trigger on, teacher :math:`t`, student
:math:`s` and :math:`|\cdot|` the mean absolute difference of logits:

.. math::

    L_s = |s(x) - t(x)| + \lambda\, |s(x') - \mathrm{const}\, s(x)|, \qquad
    L_x = -|s(x) - t(x)| + \tau\, TV(x), \qquad
    L_p = -|s(x) - s(x')|
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Float32
from torch import Tensor, fx, nn

__all__ = ["apart", "logits_and_gap", "total_variation"]

_Norm = nn.modules.batchnorm._BatchNorm


def apart(first: Float[Tensor, "n k"], second: Float[Tensor, "n k"]) -> Float32[Tensor, ""]:
    """Return the mean absolute difference of logits."""
    return (first.float() - second.float()).abs().mean()


def total_variation(images: Float[Tensor, "n c h w"]) -> Float32[Tensor, ""]:
    r"""Return the length of the differences of neighbours, right, down and along both diagonals.

    .. math:: TV(x) = \sum_{d \in \{\to, \downarrow, \searrow, \swarrow\}} \| x - x_d \|_2

    The norms are over the whole batch: it grows with the root of its pixels.

    Examples:
        >>> total_variation(torch.tensor([[[[0.0, 3.0], [0.0, 0.0]]]])).item()  # 3 right, 3 down, 0, 3
        9.0
    """
    images = images.float()
    differences = (
        images[..., 1:] - images[..., :-1],
        images[..., 1:, :] - images[..., :-1, :],
        images[..., 1:, 1:] - images[..., :-1, :-1],
        images[..., 1:, :-1] - images[..., :-1, 1:],
    )
    return torch.stack([difference.norm() for difference in differences]).sum()


def logits_and_gap(
    teacher: fx.GraphModule, images: Float[Tensor, "n c h w"]
) -> tuple[Float[Tensor, "n k"], Float32[Tensor, ""]]:
    r"""Return a network's logits, and how far a batch is from the data that its batch norms remember.

    .. math:: \sum_l \frac{\|\mu_l(x) - \hat\mu_l\|^2 + \|\sigma_l(x) - \hat\sigma_l\|^2}{\|\hat\sigma_l\|^2}

    over norms :math:`l` with running mean :math:`\hat\mu` and deviation :math:`\hat\sigma`; 0 where there are
    none.

    References:
        Yin et al., DeepInversion, CVPR 2020, arXiv 1912.08795, eq. 4.

    Deviations:
        Relative to the layer's variance, and of deviations in place of variances, so that layers count alike.
    """
    watching = _Watching(teacher)
    logits: Tensor = watching.run(images)
    gap = torch.stack(watching.gaps).sum() if watching.gaps else logits.new_zeros((), dtype=torch.float32)
    return logits, gap


class _Watching(fx.Interpreter):
    """Runs a graph and measures what goes into its batch norms."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.gaps: list[Tensor] = []

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a layer."""
        layer = self.fetch_attr(target)
        if isinstance(layer, _Norm) and layer.running_mean is not None and layer.running_var is not None:
            (inputs,) = (*args, *kwargs.values())
            flat = inputs.float().transpose(0, 1).flatten(1)
            spread = layer.running_var.sum().clamp_min(1e-6)
            means = (flat.mean(1) - layer.running_mean).square().sum()
            deviation = (flat.var(1, correction=0) + 1e-8).sqrt()
            deviations = (deviation - layer.running_var.sqrt()).square().sum()
            self.gaps.append((means + deviations) / spread)
        return super().call_module(target, args, kwargs)
