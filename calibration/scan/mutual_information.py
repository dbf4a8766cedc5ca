"""Estimates from samples how much one variable tells about another, so that it can be raised by gradients."""

from __future__ import annotations

import torch
from jaxtyping import Float32
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Information", "Statistics", "donsker_varadhan", "surrogate"]

Scores = Float32[Tensor, " n"]

_SLOPE = 0.2
_TINY = 1e-8


class Statistics(nn.Module):
    """The network T that tells pairs that belong together from pairs that do not.

    Args:
        first: Numbers in a row of the first variable.
        second: Numbers in a row of the second.
        width: Units of a hidden layer.
    """

    def __init__(self, first: int, second: int, width: int) -> None:
        super().__init__()
        self.of_first = nn.Linear(first, width, bias=False)
        self.of_second = nn.Linear(second, width)
        self.middle = nn.Linear(width, width)
        self.last = nn.Linear(width, 1)

    def forward(self, first: Float32[Tensor, "n a"], second: Float32[Tensor, "n b"]) -> Scores:
        """Return T of each pair."""
        mixed = functional.leaky_relu(self.of_first(first) + self.of_second(second), _SLOPE)
        scores: Tensor = self.last(functional.leaky_relu(self.middle(mixed), _SLOPE))
        return scores[:, 0]


def donsker_varadhan(joint: Scores, apart: Scores) -> Tensor:
    r"""Return a lower bound of the mutual information, in nats, up to what a finite sample blurs.

    .. math:: I(X; Z) \ge \mathbb{E}_{p(x, z)}[T] - \log \mathbb{E}_{p(x) p(z)}[e^T]

    Args:
        joint: T of pairs that belong together.
        apart: T of pairs drawn each for itself.

    Examples:
        >>> round(donsker_varadhan(torch.tensor([1.0, 3.0]), torch.zeros(2)).item(), 6)
        2.0

    References:
        Donsker and Varadhan, 1983; Belghazi et al., MINE, ICML 2018, eq. 10.
    """
    return joint.mean() - torch.log(apart.exp().mean() + _TINY)


def surrogate(joint: Scores, apart: Scores, average: float) -> Tensor:
    r"""Return what has the bound's gradient with a steadier denominator.

    .. math:: \mathbb{E}[T] - \frac{\mathbb{E}[e^T]}{a}

    with the running average a of :math:`\mathbb{E}[e^T]` held fixed: the gradient of a logarithm of a small
    sample's mean is biased.

    Examples:
        >>> surrogate(torch.tensor([1.0, 3.0]), torch.zeros(2), 2.0).item()
        1.5

    References:
        Belghazi et al., MINE, ICML 2018, eq. 12.
    """
    return joint.mean() - apart.exp().mean() / (average + _TINY)


class Information:
    r"""An estimate of the mutual information of two variables, trained along with whatever makes them.

    Each call of :meth:`learn` is a step of the estimate alone; :meth:`of` gives what a maker of samples may
    ascend. Pairs that do not belong together are the rows of one variable with those of another draw.

    Args:
        statistics: T, to be trained; its weights are changed.
        rate: Adam's.
        forgetting: Share of a batch in the running average of :math:`\mathbb{E}[e^T]`.

    References:
        Belghazi et al., MINE: Mutual Information Neural Estimation, ICML 2018, arXiv 1801.04062.

    Deviations:
        The running average begins with the first batch's instead of 1, and forgets a hundredth instead of a
        thousandth a step, as there are hundreds of steps where the authors of GDM have thousands. No leaky
        rectifier behind the last layer.
    """

    def __init__(self, statistics: Statistics, *, rate: float = 2e-4, forgetting: float = 0.01) -> None:
        self.statistics = statistics
        self.average: float | None = None
        self._forgetting = forgetting
        self._optimiser = torch.optim.Adam(statistics.parameters(), rate, betas=(0.5, 0.999))

    def learn(
        self, first: Float32[Tensor, "n a"], second: Float32[Tensor, "n b"], other: Float32[Tensor, "n a"]
    ) -> float:
        """Improve the estimate by a step; return it as it was before, in nats.

        Args:
            first: Rows of the first variable.
            second: The rows of the second that belong to them.
            other: Rows of the first variable from another draw.
        """
        joint, apart = self._scores(first, second.detach(), other)
        latest = float(apart.detach().exp().mean())
        kept = latest if self.average is None else self.average
        self.average = (1 - self._forgetting) * kept + self._forgetting * latest
        self._optimiser.zero_grad()
        torch.autograd.backward(-surrogate(joint, apart, self.average))
        self._optimiser.step()
        return float(donsker_varadhan(joint, apart).detach())

    def of(
        self, first: Float32[Tensor, "n a"], second: Float32[Tensor, "n b"], other: Float32[Tensor, "n a"]
    ) -> Tensor:
        """Return the bound for these samples, to be ascended by what made them."""
        return donsker_varadhan(*self._scores(first, second, other))

    def _scores(self, first: Tensor, second: Tensor, other: Tensor) -> tuple[Scores, Scores]:
        return self.statistics(first, second), self.statistics(other, second)
