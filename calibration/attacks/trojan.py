"""The Trojan attack: a patch made to excite the neurons that matter most to a trained model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn

from calibration.attacks.base import AllToOne, Images, Material
from calibration.attacks.patch import corner_box
from calibration.attacks.tensors import (
    capture_input,
    device_of,
    frozen,
    last_linear,
    require_model,
    torch_generator,
)

__all__ = ["Trojan", "excite", "strongest_neurons"]


@dataclass(frozen=True, eq=False)
class Trojan(AllToOne):
    r"""A neuron-inverted patch, all classes to one. For making test subjects only.

    .. math:: T(x) = (1 - o\,m) \odot x + o\,m \odot p, \qquad
              p = \arg\max_{p \in [0, 1]} \; \mathbb{E}_x \sum_{j \in S} a_j(T(x))

    with the mask m a box near a corner, o the opacity, and a the last hidden layer of a clean trained
    model: what goes into its last linear layer. S holds the neurons with the largest
    :math:`\sum_i |W_{ij}|` over the weights that lead out of them.

    Args:
        target_label: The class that a stamped image is to be given.
        pattern: The patch p, in [0, 1], one plane for each channel.
        margin_bottom: Pixels between the patch and the lower edge.
        margin_right: Pixels between the patch and the right edge.
        opacity: How much of the patch shows, o.

    Raises:
        ValueError: If the opacity leaves (0, 1] or a margin or the label is negative.

    References:
        Liu et al., Trojaning Attack on Neural Networks, NDSS 2018. Box and order of neurons as in the
        authors' code: 44 of 224 pixels, 20 from the corner, which is 6 and 3 of 32.

    Deviations:
        The patch is sought on clean images instead of on one noisy grey picture, and without smoothing
        between steps. Training data are the real ones, not inverted from the model, and a victim is trained
        from scratch on them instead of retrained. NAD and ABL use masks made by others and let pixel values
        wrap around; this is the paper's trigger, clipped.
    """

    name: ClassVar[str] = "trojan"

    target_label: int
    pattern: Float32[np.ndarray, "c rows columns"]
    margin_bottom: int = 3
    margin_right: int = 3
    opacity: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.opacity <= 1:
            raise ValueError(f"opacity: expected a share in (0, 1], got {self.opacity}")
        for name in ("target_label", "margin_bottom", "margin_right"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected 0 or more, got {getattr(self, name)}")

    @classmethod
    def fit(
        cls,
        material: Material,
        *,
        generator: np.random.Generator,
        target_label: int = 0,
        side: int = 6,
        margin: int = 3,
        opacity: float = 1.0,
        neurons: int = 2,
        steps: int = 300,
        step_size: float = 0.02,
        backgrounds: int = 64,
    ) -> Trojan:
        """Return the attack with a patch that excites the strongest neurons of the material's model.

        Args:
            material: Clean images and a clean, trained model.
            generator: Chooses the images and the patch to begin with.
            target_label: The class that a stamped image is to be given.
            side: Pixels along the patch.
            margin: Pixels between the patch and the lower and right edges.
            opacity: How much of the patch shows.
            neurons: How many neurons to excite.
            steps: Steps of gradient ascent.
            step_size: Mean change of a pixel value in a step.
            backgrounds: How many images to seek the patch on.
        """
        model = require_model(material, cls.name)
        rows = generator.permutation(len(material.images))[:backgrounds]
        images = torch.from_numpy(material.images[rows]).to(device_of(model))
        box = corner_box((side, side), (images.shape[2], images.shape[3]), margin, margin)
        start = torch.rand(images.shape[1], side, side, generator=torch_generator(generator))
        with frozen(model):
            chosen = strongest_neurons(last_linear(model, cls.name), neurons)
            pattern = excite(model, images, start, box, chosen, opacity, steps, step_size)
        return cls(target_label, pattern.cpu().numpy(), margin, margin, opacity)

    def stamp(self, images: Images) -> Images:
        """Return copies of the images, float32 NCHW in [0, 1], with the patch on each.

        Raises:
            ValueError: If the patch and its margins do not fit into the images.
        """
        rows, columns = self.place(images.shape[2], images.shape[3])
        return self.stamp_at(images, rows.start, columns.start)

    def stamp_at(self, images: Images, top: int, left: int) -> Images:
        """Return copies of the images with the patch's upper left pixel at ``top``, ``left``."""
        stamped, shown = images.copy(), np.float32(self.opacity)
        box = stamped[:, :, top : top + self.pattern.shape[1], left : left + self.pattern.shape[2]]
        box[:] = np.clip((1 - shown) * box + shown * self.pattern, 0, 1)
        return stamped

    def place(self, height: int, width: int) -> tuple[slice, slice]:
        """Return the rows and columns that the patch takes in an image of that size."""
        size = self.pattern.shape[1], self.pattern.shape[2]
        return corner_box(size, (height, width), self.margin_bottom, self.margin_right)


def strongest_neurons(layer: nn.Linear, count: int) -> Int64[Tensor, " _"]:
    """Return the inputs of the layer with the largest sums of absolute weights leading out of them."""
    return layer.weight.abs().sum(dim=0).topk(count).indices


def excite(
    model: nn.Module,
    images: Float[Tensor, "n c h w"],
    start: Float[Tensor, "c rows columns"],
    box: tuple[slice, slice],
    neurons: Int64[Tensor, " _"],
    opacity: float,
    steps: int,
    step_size: float,
) -> Float[Tensor, "c rows columns"]:
    r"""Return the patch, of all that gradient ascent came by, that excites the neurons most.

    A step is :math:`p \leftarrow \mathrm{clip}(p + \eta\,g / \mathrm{mean}|g|, 0, 1)` for the gradient g of
    the mean over images of the neurons' sum.
    """
    layer = last_linear(model, Trojan.name)
    pattern = start.clone().to(images.device).requires_grad_()
    best, best_score = pattern.detach().clone(), -float("inf")
    with capture_input(layer) as hidden:
        for _ in range(steps):
            stamped = images.clone()
            stamped[:, :, box[0], box[1]] = (1 - opacity) * images[:, :, box[0], box[1]] + opacity * pattern
            model(stamped)
            score = hidden[0].flatten(1)[:, neurons].sum(dim=1).mean()
            if score.item() > best_score:
                best, best_score = pattern.detach().clone(), score.item()
            (gradient,) = torch.autograd.grad(score, pattern)
            with torch.no_grad():
                pattern += step_size * gradient / (gradient.abs().mean() + 1e-12)
                pattern.clamp_(0, 1)
    return best
