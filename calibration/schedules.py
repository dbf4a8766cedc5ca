"""Learning-rate schedules, as pure functions of how far training has come: nothing to save or resume."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Protocol, runtime_checkable

__all__ = ["Constant", "Cosine", "HoldThenFall", "OneCycle", "Schedule", "Steps"]


@runtime_checkable
class Schedule(Protocol):
    """The factor on a recipe's rate at each step."""

    name: ClassVar[str]

    def factor(self, step: int, steps: int) -> float:
        """Return the factor at ``step``, from 0 to ``steps`` - 1, of a training of ``steps`` steps."""


@dataclass(frozen=True)
class Constant:
    """The same rate throughout."""

    name: ClassVar[str] = "constant"

    def factor(self, step: int, steps: int) -> float:
        """Return 1."""
        del step, steps
        return 1.0


@dataclass(frozen=True)
class Cosine:
    r"""Half a cosine from the full rate to nearly 0: :math:`(1 + \cos(\pi s / n)) / 2` at step s of n.

    References:
        Loshchilov and Hutter, SGDR, ICLR 2017, arXiv 1608.03983, eq. 5, without restarts.
    """

    name: ClassVar[str] = "cosine"

    def factor(self, step: int, steps: int) -> float:
        """Return the factor; 1 at step 0."""
        return (1 + math.cos(math.pi * step / steps)) / 2


@dataclass(frozen=True)
class Steps:
    """The rate times ``drop`` once more from each milestone on.

    Args:
        milestones: Shares of the whole training, rising, each in (0, 1).
        drop: The factor.

    Raises:
        ValueError: If the milestones do not rise within (0, 1).
    """

    name: ClassVar[str] = "steps"

    milestones: tuple[float, ...] = (0.5, 0.75)
    drop: float = 0.1

    def __post_init__(self) -> None:
        bounds = (0.0, *self.milestones, 1.0)
        if any(low >= high for low, high in pairwise(bounds)):
            raise ValueError(f"milestones: expected rising shares within (0, 1), got {self.milestones}")

    def factor(self, step: int, steps: int) -> float:
        """Return the factor; a milestone that falls between two steps takes effect at the later one."""
        passed = sum(step >= milestone * steps for milestone in self.milestones)
        return float(self.drop**passed)


@dataclass(frozen=True)
class OneCycle:
    r"""Up to the full rate and down again, both along half a cosine.

    Args:
        rising: The share of the training spent on the way up, in (0, 1).
        start: The factor at the first step.
        end: The factor at the last step.

    Raises:
        ValueError: If ``rising`` is not within (0, 1).

    References:
        Smith and Topin, Super-Convergence, arXiv 1708.07120. Start 1/25 and end 4e-6 are those of fastai
        and of torch's ``OneCycleLR``.

    Deviations:
        The momentum stays as it is.
    """

    name: ClassVar[str] = "one cycle"

    rising: float = 0.2
    start: float = 0.04
    end: float = 4e-6

    def __post_init__(self) -> None:
        if not 0 < self.rising < 1:
            raise ValueError(f"rising: expected a share within (0, 1), got {self.rising}")

    def factor(self, step: int, steps: int) -> float:
        """Return the factor; 1 at step ``rising * steps - 1``."""
        peak = max(self.rising * steps - 1, 1e-9)
        if step <= peak:
            return _between(self.start, 1.0, step / peak)
        return _between(1.0, self.end, (step - peak) / max(steps - 1 - peak, 1e-9))


@dataclass(frozen=True)
class HoldThenFall:
    r"""The full rate at first, then down along a straight line, then what is left of it.

    Args:
        hold: The share of the training at the full rate.
        fall: The share of the training after which the fall is over, above ``hold``.
        end: The factor from there on.

    Raises:
        ValueError: If the shares are not 0 <= hold < fall <= 1.

    References:
        Garipov et al., Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs, NeurIPS 2018, arXiv
        1802.10026, appendix A.1.
    """

    name: ClassVar[str] = "hold then fall"

    hold: float = 0.5
    fall: float = 0.9
    end: float = 0.01

    def __post_init__(self) -> None:
        if not 0 <= self.hold < self.fall <= 1:
            raise ValueError(
                f"hold, fall: expected shares with hold below fall, got {self.hold} and {self.fall}"
            )

    def factor(self, step: int, steps: int) -> float:
        """Return the factor; ``end`` from step ``fall * steps`` on."""
        fallen = (step / steps - self.hold) / (self.fall - self.hold)
        return 1.0 + (self.end - 1.0) * min(max(fallen, 0.0), 1.0)


def _between(first: float, last: float, share: float) -> float:
    return last + (first - last) * (1 + math.cos(math.pi * min(share, 1.0))) / 2
