"""Which aims are worth more steps: all of few; of many the likeliest, and a random sample beside them.

An inversion of a thousand labels to the end is wasted on nine hundred and ninety of them. After a few steps a
backdoor's label is already among the smallest; so after each rung only the likeliest go on. The sizes of the
likeliest cannot say what is usual, having been chosen for being small: a sample drawn before anything was
seen goes on to the end beside them.

References:
    Successive halving: Jamieson and Talwalkar, AISTATS 2016. Labels as arms of a bandit: Shen et al.,
    Backdoor scanning for deep neural networks through K-Arm optimization, ICML 2021.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64

__all__ = ["Rung", "rungs", "survivors"]


@dataclass(frozen=True)
class Rung:
    """A stretch of the search.

    Attributes:
        aims: How many aims go into it, the reference sample included.
        steps: Steps each gets.
        batch: Images of each in a step.
    """

    aims: int
    steps: int
    batch: int


def rungs(
    aims: int, steps: int, batch: int, *, finalists: int, reference: int, tries: int = 30, quarter: int = 4
) -> tuple[Rung, ...]:
    """Return the stretches of a search.

    Args:
        aims: All of them.
        steps: Of each finalist, in all.
        batch: Images of a finalist in a step.
        finalists: How many are wanted in the end beside the reference sample.
        reference: Size of that sample.
        tries: Steps of the first stretch where there are many.
        quarter: A stretch takes one in so many on.

    Examples:
        >>> rungs(10, 300, 16, finalists=8, reference=12)
        (Rung(aims=10, steps=300, batch=16),)
        >>> [rung.aims for rung in rungs(1000, 300, 16, finalists=8, reference=12)]
        [1000, 259, 74, 28, 20]
    """
    final = finalists + reference
    if aims <= final:
        return (Rung(aims, steps, batch),)
    found, left, spent = [], aims, 0
    while left > final and spent + tries < steps:
        found.append(Rung(left, tries, max(batch // 2, 1)))
        spent += tries
        left = max(final, reference + (left - reference + quarter - 1) // quarter)
    return (*found, Rung(left, steps - spent, batch))


def survivors(
    sizes: Float64[np.ndarray, " n"],
    losses: Float64[np.ndarray, " n"],
    won: Bool[np.ndarray, " n"],
    sample: Sequence[int],
    count: int,
) -> list[int]:
    """Return the rows that go on, rising: the sample and, of the others, the likeliest.

    Args:
        sizes: Of each aim's trigger.
        losses: Its cross-entropy.
        won: Whether it worked at all. Those that did come first, by size; the others by loss.
        sample: Rows that go on whatever they are.
        count: How many go on.

    Examples:
        >>> survivors(np.array([9.0, 2.0, 5.0, 1.0]), np.ones(4), np.array([True, True, True, False]), [0], 2)
        [0, 1]
    """
    likeliest = np.lexsort((np.where(won, sizes, losses), ~won))
    fixed = set(sample)
    others = [int(row) for row in likeliest if row not in fixed]
    return sorted([*fixed, *others[: max(count - len(fixed), 0)]])
