"""Searches for the smallest triggers of many aims: in rungs, in chunks, on whatever executor there is."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from calibration.scan.arms import rungs, survivors
from calibration.scan.base import Bench, Executor
from calibration.scan.executor import gather
from calibration.scan.inversion import Aim, Inversion, InversionPlan
from calibration.scan.state import State

__all__ = ["Searched", "search"]

VALUES_AT_ONCE = 256 * 3 * 32 * 32
"""Numbers in the images of one call of the model; more gain nothing on a CPU and cost memory."""
STEPS_AT_ONCE = 50
"""Steps of a unit: how finely progress is shown, and what is kept."""


@dataclass(frozen=True, eq=False)
class Searched:
    """What a search came to; a row for each aim that went on to the end.

    Attributes:
        aims: Those.
        state: Of each, with the smallest trigger that worked.
        asr: Success of that on held images.
        reference: Whether the aim was there whatever it showed: all were if none was dropped.
        looked_at: How many aims the search began with.
        images: How many were sent through the model, forwards and back.
    """

    aims: tuple[Aim, ...]
    state: State
    asr: Float32[np.ndarray, " n"]
    reference: Bool[np.ndarray, " n"]
    looked_at: int
    images: int

    @property
    def sizes(self) -> Float64[np.ndarray, " n"]:
        """Of each aim's smallest trigger."""
        sizes: Float64[np.ndarray, " n"] = self.state.size.numpy().astype(np.float64)
        return sizes

    @property
    def won(self) -> Bool[np.ndarray, " n"]:
        """Whether any trigger worked on the images searched on; the size of the others is a lower bound."""
        won: Bool[np.ndarray, " n"] = self.state.won.numpy()
        return won

    @property
    def steps(self) -> Int64[np.ndarray, " n"]:
        """Done for each aim."""
        steps: Int64[np.ndarray, " n"] = self.state.steps.numpy()
        return steps


def search(
    bench: Bench,
    aims: Sequence[Aim],
    plan: InversionPlan,
    *,
    steps: int,
    finalists: int,
    reference: int,
    seed: int,
    executor: Executor,
) -> Searched:
    """Invert the aims' triggers.

    Args:
        bench: Model and images.
        aims: What triggers are to do.
        plan: How each is inverted.
        steps: At most, of each.
        finalists: How many of the likeliest go on to the end where there are many.
        reference: How many aims drawn at random go on beside them.
        seed: Of everything random.
        executor: Where.
    """
    sample = set(np.random.default_rng(seed).permutation(len(aims))[:reference].tolist())
    rows, state, images = list(range(len(aims))), None, 0
    stretches = rungs(len(aims), steps, plan.batch, finalists=finalists, reference=reference)
    for place, rung in enumerate(stretches):
        if state is not None and rung.aims < len(rows):
            chosen = _likeliest(state, [rows.index(row) for row in sorted(sample)], rung.aims)
            rows, state = [rows[row] for row in chosen], state.rows(chosen)
        for piece, last in _pieces(rung.steps):
            units = _units(
                bench, [aims[row] for row in rows], state, replace(plan, batch=rung.batch), piece, seed
            )
            if last and place == len(stretches) - 1:
                units = [replace(unit, judge=True) for unit in units]
            found = gather(executor, units)
            before = 0 if state is None else int((state.steps * rung.batch).sum())
            state = State.join([State.from_arrays(arrays) for arrays in found])
            images += int((state.steps * rung.batch).sum()) - before
    assert state is not None
    kept = np.array([row in sample for row in rows]) | (len(rows) == len(aims))
    asr = np.concatenate([arrays["asr"] for arrays in found])
    return Searched(tuple(aims[row] for row in rows), state, asr, kept, len(aims), images)


def _pieces(steps: int) -> Iterator[tuple[int, bool]]:
    """Yield steps to do at once, and whether they are the last; a scan broken off loses one piece."""
    for done in range(0, steps, STEPS_AT_ONCE):
        yield min(STEPS_AT_ONCE, steps - done), done + STEPS_AT_ONCE >= steps


def _likeliest(state: State, sample: list[int], count: int) -> list[int]:
    sizes, losses = state.size.numpy().astype(np.float64), state.loss.numpy().astype(np.float64)
    return survivors(sizes, losses, state.won.numpy(), sample, count)


def _units(
    bench: Bench, aims: list[Aim], state: State | None, plan: InversionPlan, steps: int, seed: int
) -> list[Inversion]:
    """Return the work in chunks that depend on nothing but the aims, the shape and the batch."""
    at_once = max(1, VALUES_AT_ONCE // math.prod(bench.shape) // plan.batch)
    starts = range(0, len(aims), at_once)
    return [
        Inversion(
            plan,
            tuple(aims[start : start + at_once]),
            steps,
            seed,
            None if state is None else state.rows(range(start, min(start + at_once, len(aims)))),
        )
        for start in starts
    ]
