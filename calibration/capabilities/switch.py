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

from calibration.capabilities.base import Bench, Capability, Fitted, Off
from calibration.capabilities.trial import LEAST_IMAGES, unfit_scores
from guard.arrays import Images

__all__ = ["Canary", "Switched", "switch_on"]

LEAST_AUROC: Final = 0.7
"""Mean, over the canaries, below which a capability is off."""

ASKED_AGAIN: Final = 8
MAY_MOVE: Final = 0.05
"""Share of the scores' spread by which one may move with the batch it is in."""


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
    reason = unfit_scores(scores, frr) or _fickle(on_half, new, scores)
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
