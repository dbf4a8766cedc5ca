"""Whether a capability is on: fitted on clean images, tried on others, and on canaries where there are any.

What the trial shows, without canaries: that the score of new clean inputs is distributed as that of others,
so that a boundary set on some holds on the rest, does not depend on what they are asked with, and is fine
enough for the rate asked for. It does not show that any trigger would be found. A canary, a copy of the model
with a backdoor planted in it, shows that one of that kind would.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

import numpy as np
import onnx
from jaxtyping import Float64
from scipy.stats import ks_2samp

from calibration.capabilities.base import Bench, Capability, Fitted, Off
from guard.arrays import Images

__all__ = ["Canary", "Switched", "switch_on"]

LEAST_IMAGES: Final = 100
LEAST_AUROC: Final = 0.7
"""Mean, over the canaries, below which a capability is off."""

ASKED_AGAIN: Final = 8
MAY_MOVE: Final = 0.05
"""Share of the scores' spread by which one may move with the batch it is in."""

SAME_AT: Final = 1e-3
"""Chance at which scores of fitted and new clean inputs are taken to be differently distributed."""


@runtime_checkable
class Canary(Protocol):
    """A copy of the model with a backdoor planted in it."""

    @property
    def model(self) -> onnx.ModelProto:
        """The copy, of the model's own graph."""
        ...

    @property
    def triggered(self) -> Images:
        """Inputs with the trigger, in the model's input space, for which it works."""
        ...


@dataclass(frozen=True)
class Switched:
    """What came of it.

    Attributes:
        name: The capability's.
        fitted: It, fitted on all clean images; None where it is off.
        reason: Why it is off; empty where it is on.
        aurocs: How well it told each canary's triggered inputs from clean ones.
    """

    name: str
    fitted: Fitted | None
    reason: str = ""
    aurocs: tuple[float, ...] = ()

    @property
    def on(self) -> bool:
        """Whether it is on."""
        return self.fitted is not None


def switch_on(capability: Capability, bench: Bench, frr: float, canaries: Sequence[Canary] = ()) -> Switched:
    """Fit a capability and try it.

    Args:
        capability: A row of the table.
        bench: Model and clean images, none of which calibrates.
        frr: The lowest false-rejection rate that is asked for.
        canaries: Backdoored copies of the model, which are no part of the bench.
    """
    if len(bench.images) < LEAST_IMAGES:
        images = len(bench.images)
        return Switched(
            capability.name, None, f"it takes {LEAST_IMAGES} clean images, and there are {images}"
        )
    seen, new = bench.images[::2], bench.images[1::2]
    on_half = capability.fit(bench.with_images(seen))
    if isinstance(on_half, Off):
        return Switched(capability.name, None, on_half.reason)
    scores = on_half.scores(new)
    reason = _unfit(scores, frr) or _fickle(on_half, new, scores)
    aurocs = (
        () if reason else tuple(_tried(capability, bench.with_images(seen), new, one) for one in canaries)
    )
    if aurocs and np.mean(aurocs) < LEAST_AUROC:
        told = ", ".join(f"{one:.2f}" for one in aurocs)
        reason = f"it is blind to the planted canaries (AUROC {told}; expected {LEAST_AUROC} on average)"
    if reason:
        return Switched(capability.name, None, reason, aurocs)
    fitted = capability.fit(bench)
    if isinstance(fitted, Off):
        return Switched(capability.name, None, fitted.reason, aurocs)
    return Switched(capability.name, fitted, "", aurocs)


def _unfit(scores: Float64[np.ndarray, " n"], frr: float) -> str:
    """Return what is wrong with scores of clean inputs that were not fitted on; nothing if all is well."""
    if not np.isfinite(scores).all():
        return "some clean inputs have no finite score"
    highest = np.quantile(scores, 1 - frr)
    tied = float((scores >= highest).mean())
    if tied > max(2 * frr, 3 / len(scores)):
        return (
            f"its scores are too coarse for a rate of {frr:.2%}: {tied:.1%} of clean inputs share those "
            f"that only so many should have"
        )
    order = np.random.default_rng(0).permutation(len(scores))
    one, other = np.array_split(scores[order], 2)
    chance = float(ks_2samp(one, other).pvalue)
    if chance < SAME_AT:
        return (
            f"two halves of the clean images have other scores (p = {chance:.1g}), so that a boundary set on "
            f"one would not hold on the other"
        )
    return ""


def _fickle(fitted: Fitted, images: Images, scores: Float64[np.ndarray, " n"]) -> str:
    """Return what is wrong where the same inputs get other scores when they are asked about again."""
    some = images[:ASKED_AGAIN]
    moved = float(np.abs(scores[: len(some)] - fitted.scores(some[::-1])[::-1]).max())
    if moved > MAY_MOVE * max(float(scores.std()), 1e-9):
        return f"the same inputs in another order get other scores, by up to {moved:.3g}"
    return ""


def _tried(capability: Capability, seen: Bench, new: Images, canary: Canary) -> float:
    """Return how well the capability tells a canary's triggered inputs from clean ones; 0 where it is off."""
    fitted = capability.fit(seen.with_model(canary.model))
    if isinstance(fitted, Off) or not len(canary.triggered):
        return 0.0
    clean, triggered = fitted.scores(new), fitted.scores(canary.triggered)
    above = (triggered[:, None] > clean[None]).mean() + (triggered[:, None] == clean[None]).mean() / 2
    return float(above)
