r"""Where a network looks: the attention maps of its stages, and how far a student's are from a teacher's.

A map is what is left of a stage's features when their squares are summed over the channels, as a vector of
length 1 for each image,

.. math:: A = \frac{\sum_c F_c^2}{\lVert \sum_c F_c^2 \rVert_2 + 10^{-6}} .

Squared distances between such vectors do not depend on their resolution, means over their pixels do. The
papers' weights are on means over the 32 x 32, 16 x 16 and 8 x 8 pixels of a WRN-16-1 on CIFAR-10. Here
the last stage always counts as one of 8 x 8 pixels, the one before as one of 16 x 16, and so on: the papers'
losses exactly on their networks, and as strong on images of any other size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32
from torch import Tensor, fx

from calibration.errors import ModelError
from calibration.stages import Stage, find_stages, tapped

__all__ = ["Attending", "attention_map", "last_stages", "map_loss", "papers_pixels"]

PAPERS_LAST_SIDE = 8


def attention_map(features: Float[Tensor, "n c h w"]) -> Float32[Tensor, "n h w"]:
    """Return where each image's features are large, as a map of Euclidean norm 1."""
    energy = features.float().square().sum(1)
    length = torch.linalg.vector_norm(energy, dim=(1, 2), keepdim=True)
    normed: Tensor = energy / (length + 1e-6)
    return normed


def papers_pixels(stages: int) -> tuple[int, ...]:
    """Return how many pixels the last so many stages have in the papers' networks.

    Examples:
        >>> papers_pixels(3)
        (1024, 256, 64)
    """
    return tuple(int((PAPERS_LAST_SIDE * 2**place) ** 2) for place in reversed(range(stages)))


def map_loss(
    student: Sequence[Float32[Tensor, "n ..."]],
    teacher: Sequence[Float32[Tensor, "n ..."]],
    weights: Sequence[float],
) -> Float32[Tensor, ""]:
    r"""Return how far a student's maps are from a teacher's.

    .. math:: \sum_l \frac{w_l}{p_l} \cdot \frac1n \sum_i \lVert A^l_{s,i} - A^l_{t,i} \rVert_2^2

    Args:
        student: One map for each stage, in the order of the network.
        teacher: The teacher's maps of the same images.
        weights: :math:`w`, on the mean over the pixels that the papers' networks have, :math:`p`; of more
            weights than stages the last ones count.
    """
    pixels = papers_pixels(len(student))
    terms = zip(weights[-len(student) :], pixels, student, teacher, strict=True)
    losses = [
        weight / count * (own - wanted).square().flatten(1).sum(1).mean()
        for weight, count, own, wanted in terms
    ]
    return torch.stack(losses).sum()


def last_stages(
    model: fx.GraphModule, shape: tuple[int, int, int], count: int, method: str
) -> tuple[Stage, ...]:
    """Return the last stages of a network, or as many as there are.

    Raises:
        ModelError: If there are none.
    """
    stages = find_stages(model, shape)[-count:]
    if not stages:
        raise ModelError(
            f"{method} needs a network with feature maps, got one without, such as a perceptron; choose a "
            f"repair that needs none, such as fine_tuning"
        )
    return stages


@dataclass(frozen=True, eq=False)
class Attending:
    """A student and a teacher looking at the same images.

    Args:
        student: Images to logits and maps of features, in one pass.
        teacher: The same of the teacher, without logits.
    """

    student: fx.GraphModule
    teacher: fx.GraphModule

    @classmethod
    def of(cls, student: fx.GraphModule, teacher: fx.GraphModule, stages: Sequence[Stage]) -> Attending:
        """Return the two, looking through the same stages.

        Args:
            student: A copy of the network that the stages were found in.
            teacher: Another.
            stages: From :func:`last_stages`.
        """
        return cls(tapped(student, stages), tapped(teacher, stages, logits=False))

    def __call__(self, images: Float[Tensor, "n c h w"]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Return the student's logits, its attention maps, and the teacher's; no gradient goes to these."""
        with torch.no_grad():
            _, shown = self.teacher(images)
            wanted = [attention_map(features) for features in shown]
        logits, seen = self.student(images)
        return logits.float(), [attention_map(features) for features in seen], wanted
