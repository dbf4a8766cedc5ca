r"""How a network's attention maps relate to one another, and to another network's: a graph of attention.

Its nodes are the attention maps of the stages (``calibration.repair.attention``), its edges how far two of
them are apart; and each node of a teacher is compared with all of a student's, weighted by how much they
have to do with each other. That is asked of a small module of its own,

.. math::
    \alpha^i_j = \mathrm{softmax}_j \frac{s_{ij} \cdot q_i + P^t_i \cdot P^s_j}{\sqrt d}, \quad
    q_i = \mathrm{BN}(w^t_i a^t_i), \quad k_j = \mathrm{ReLU}(\mathrm{BN}(w^s_j a^s_j)), \quad
    s_j = \mathrm{BN}(W k_j),

with a the mean of a map over its pixels, and BN always over the batch at hand.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import torch
from jaxtyping import Float32
from torch import Tensor, nn
from torch.nn import functional

from calibration.repair.attention import papers_pixels

__all__ = ["Relations", "edge_loss", "edges"]

Maps = Sequence[Float32[Tensor, "n _ _"]]


def edges(maps: Maps) -> Float32[Tensor, "e n"]:
    """Return how far each two maps of an image are apart, as a share of the largest such in the batch.

    The finer map is averaged down to the size of the coarser one. Pairs come as (1, 2), (1, 3), (2, 3).
    """
    distances = []
    for fine, coarse in combinations(maps, 2):
        averaged = _resized(fine, coarse.shape[1:])
        apart = (averaged - coarse).square().flatten(1).sum(1).clamp_min(1e-12)
        distances.append(apart / apart.max())
    return torch.stack(distances)


def edge_loss(student: Maps, teacher: Maps) -> Float32[Tensor, ""]:
    """Return the mean squared difference of the edges; 0 where there is but one map, and so no edge."""
    if len(student) < 2:
        return student[0].new_zeros(())
    return functional.mse_loss(edges(student), edges(teacher))


class Relations(nn.Module):
    """Weighs each node of a student for each of a teacher's, and says how far they are apart by that.

    Args:
        nodes: Of either.
        width: Numbers that a node is described by, d.
        generator: Draws the weights, on the CPU.
    """

    def __init__(self, nodes: int, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.pixels = papers_pixels(nodes)
        self.query = _uniform((nodes, width), 1.0, generator)
        self.key = _uniform((nodes, width), 1.0, generator)
        self.bilinear = _uniform((width, nodes * width), 1 / math.sqrt(width), generator)
        self.query_norm, self.key_norm = _Norm(nodes, width), _Norm(nodes, width)
        self.bilinear_norm = _Norm(1, nodes * width)
        spread = math.sqrt(2 / (nodes + width))
        self.teacher_places = nn.Parameter(torch.randn((nodes, width), generator=generator) * spread)
        self.student_places = nn.Parameter(torch.randn((nodes, width), generator=generator) * spread)

    def forward(self, student: Maps, teacher: Maps) -> Float32[Tensor, ""]:
        r"""Return :math:`\sum_i \frac1{n p_i} \sum \sum_j \alpha^i_j \lVert v^s_j - v^t_i \rVert_2^2`.

        v is a map squared, resized to the teacher's node, as a vector of length 1; p are the papers' pixels.
        """
        with torch.autocast(student[0].device.type, enabled=False):
            shares, losses = self.shares(student, teacher), []
            for place, (wanted, pixels) in enumerate(zip(teacher, self.pixels, strict=True)):
                value = functional.normalize(wanted.square().flatten(1), dim=1)[:, :, None]
                own = torch.stack(
                    [_resized(seen.square(), wanted.shape[1:]).flatten(1) for seen in student], 1
                )
                length = torch.linalg.vector_norm(own, dim=2).clamp_min(1e-12)
                apart = (2 - 2 * (own @ value)[:, :, 0] / length) / pixels  # as it is of unit vectors
                losses.append((shares[:, place] * apart).sum(1).mean())
            return torch.stack(losses).sum()

    def shares(self, student: Maps, teacher: Maps) -> Float32[Tensor, "n t s"]:
        """Return how much each node of the student counts for each of the teacher's; rows sum to 1."""
        nodes, width = self.query.shape
        query = self.query_norm(self._means(teacher)[:, :, None] * self.query)
        key = self.key_norm(self._means(student)[:, :, None] * self.key).relu()
        turned = self.bilinear_norm((key @ self.bilinear).flatten(0, 1)[:, None])
        turned = turned.view(len(key), nodes, nodes, width)
        logits = torch.einsum("nstd,ntd->nts", turned, query) + self.teacher_places @ self.student_places.T
        return functional.softmax(logits / math.sqrt(width), dim=2)

    def _means(self, maps: Maps) -> Float32[Tensor, "n m"]:
        """Return the mean of each map, as it would be of a map as large as the papers'."""
        sizes = zip(maps, self.pixels, strict=True)
        return torch.stack(
            [found.flatten(1).mean(1) * math.sqrt(found[0].numel() / pixels) for found, pixels in sizes], 1
        )


class _Norm(nn.Module):
    """Batch norm over the first axis, by the batch's own statistics, whatever the mode."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(rows, width))
        self.shift = nn.Parameter(torch.zeros(rows, width))

    def forward(self, values: Float32[Tensor, "n r d"]) -> Float32[Tensor, "n r d"]:
        if len(values) == 1:
            return self.shift.expand_as(values)
        gain, shift = self.gain.flatten(), self.shift.flatten()
        normed = functional.batch_norm(values.flatten(1), None, None, gain, shift, training=True)
        return normed.view_as(values)


def _uniform(shape: tuple[int, int], bound: float, generator: torch.Generator) -> nn.Parameter:
    return nn.Parameter((torch.rand(shape, generator=generator) * 2 - 1) * bound)


def _resized(found: Float32[Tensor, "n _ _"], size: torch.Size) -> Float32[Tensor, "n _ _"]:
    """Return maps of another size, each of whose pixels is the mean of those it covers."""
    (n, height, width), (rows, columns) = found.shape, size
    if (height, width) == (rows, columns):
        return found
    if rows % height == 0 and columns % width == 0:
        spread = (n, height, rows // height, width, columns // width)
        return found[:, :, None, :, None].expand(spread).reshape(n, rows, columns)
    return functional.adaptive_avg_pool2d(found[:, None], (rows, columns))[:, 0]
