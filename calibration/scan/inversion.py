"""Inverts many triggers at once: for each aim the smallest that turns its images into its target.

Theory of operation. All aims share every call of the model: a step stamps a few images of each aim with that
aim's trigger, sends all of them through the model as one batch, and adds up

    cross-entropy to the aim's target  +  weight × size of the aim's trigger

As no aim's loss depends on another's parameters, the gradient of the sum is every aim's own, and Adam works
number by number, so each aim is optimised as if alone: its weight, its smallest trigger so far, its images
(drawn by a generator of its own) and the moment it stops are kept per aim. What an aim comes to does not
depend on which other aims are in the batch, but for the last bits of the model's arithmetic.

The weight follows the success rate, smoothed over steps: above the goal it grows by a factor, below it
shrinks faster, so that the trigger shrinks along the border of what still works. An aim stops when its
smallest trigger has not become smaller by a hundredth for a while after its weight went both ways.

A state is plain arrays: an inversion stops after any number of steps and goes on elsewhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor
from torch.nn import functional

from calibration.prediction import autocast, device_of
from calibration.recipe import Precision
from calibration.scan.base import Arrays, Bench, Labelled, Unit
from calibration.scan.forms import FORMS, Bounds, Form
from calibration.scan.state import State

__all__ = ["Aim", "Inversion", "InversionPlan", "pool_of", "seed_of"]

_BETAS: Final = (0.5, 0.9)
_TINY: Final = 1e-8
_SMOOTHING: Final = 0.8
_WEIGHTS: Final = (1e-6, 1e4)
_DRAWS: Final = "a generator a step, the best works now"
"""Names how an aim comes to its result; to be changed with it, so that kept results of old are not used."""


@dataclass(frozen=True)
class Aim:
    """What a trigger is to do.

    Attributes:
        target: Class it leads to.
        source: Class of the images it is for; any other than the target if None.
    """

    target: int
    source: int | None = None

    @property
    def name(self) -> str:
        """``3``, or ``1→3`` for a pair."""
        return str(self.target) if self.source is None else f"{self.source}→{self.target}"


@dataclass(frozen=True)
class InversionPlan:
    """How triggers are inverted.

    Attributes:
        form: Name of their form.
        batch: Images of each aim in a step.
        goal: Share of its images that a trigger has to turn.
        up: Factor on the weight of a trigger that works; one that does not has its weight divided by it **
            1.5.
        patience: Steps without a smaller trigger before an aim stops.
        precision: Of the model's arithmetic during the search.

    References:
        Wang et al. 2019, section IV-A. Factors, betas and the power 1.5 are the authors' code's.

    Deviations:
        The weight moves a little at every step instead of much after five or ten; it begins above 0; the goal
        is 95 % instead of 99 %, which a share of ten or a hundred images cannot tell apart.
    """

    form: str = "patch"
    batch: int = 16
    goal: float = 0.95
    up: float = 1.15
    patience: int = 100
    precision: Precision = "bfloat16"

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise ValueError(f"form: expected one of {', '.join(FORMS)}, got {self.form!r}")
        if self.batch < 1 or self.patience < 1:
            raise ValueError(f"batch, patience: expected 1 or more, got {self.batch}, {self.patience}")
        if not 0 < self.goal <= 1 or self.up <= 1:
            raise ValueError(f"goal, up: expected a share and a factor above 1, got {self.goal}, {self.up}")


@dataclass(frozen=True, eq=False)
class Inversion(Unit):
    """Some steps of some aims' inversion.

    Args:
        plan: How.
        aims: Of this unit.
        steps: How many more.
        seed: Of starting points and images; an aim's own draws do not depend on the other aims.
        begun: The state to go on from; from the start if None.
        judge: Whether to measure the best triggers on held images in the end.
    """

    plan: InversionPlan
    aims: tuple[Aim, ...]
    steps: int
    seed: int
    begun: State | None = None
    judge: bool = False
    _form: Form = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_form", FORMS[self.plan.form])

    @property
    def key(self) -> str:
        """The form, and a digest of everything above and of how images are drawn."""
        aims = ",".join(aim.name for aim in self.aims)
        begun = "start" if self.begun is None else self.begun.digest()
        told = f"{_DRAWS} {self.plan} {aims} {self.steps} {self.seed} {self.judge} {begun}"
        return f"inversion-{self.plan.form}-{hashlib.sha256(told.encode()).hexdigest()[:32]}"

    @property
    def weight(self) -> int:
        """Images, if no aim stops early."""
        return len(self.aims) * self.steps * self.plan.batch

    def run(self, bench: Bench) -> Arrays:
        """Return the state as arrays; with ``judge`` also ``asr``, the best triggers' on held images."""
        state = self._begin(bench) if self.begun is None else self.begun
        pools = [pool_of(bench.clean, aim) for aim in self.aims]
        active = list(range(len(self.aims)))
        for _ in range(self.steps):
            active = [row for row in active if not _finished(state, row, self.plan)]
            if not active:
                break
            drawn = [pools[row][self._draw(row, len(pools[row]), int(state.steps[row]))] for row in active]
            images = bench.clean.images[torch.stack(drawn)]
            now = self._step(state.rows(active), images, [self.aims[row].target for row in active], bench)
            state = now if len(active) == len(self.aims) else state.put(active, now)
        found = state.as_arrays()
        if self.judge:
            found["asr"] = self._judge(state, bench)
        return found

    def _begin(self, bench: Bench) -> State:
        count = len(self.aims)
        started = [
            self._form.begin(
                bench.shape, torch.Generator().manual_seed(seed_of(self.seed, self.plan.form, aim))
            )
            for aim in self.aims
        ]
        parts = tuple(torch.stack(rows) for rows in zip(*started, strict=True))
        nothing = tuple(torch.zeros_like(part) for part in parts)
        zeros, no = torch.zeros(count), torch.zeros(count, dtype=torch.bool)
        whole = torch.zeros(count, dtype=torch.int64)
        return State(
            parts=parts, best=parts, first=nothing, second=nothing, steps=whole,
            weight=torch.full((count,), self._form.weight), success=zeros,
            size=self._form.size(parts, bench.shape), won=no, loss=torch.full((count,), torch.inf),
            since=whole, rose=no, fell=no,
        )  # fmt: skip

    def _draw(self, row: int, count: int, done: int) -> Int64[Tensor, " b"]:
        """Draw which of its images an aim sees in a step, whatever the unit that the step is in."""
        generator = torch.Generator().manual_seed(seed_of(self.seed, "images", self.aims[row], done))
        return torch.randint(count, (self.plan.batch,), generator=generator)

    def _step(self, state: State, images: Tensor, targets: list[int], bench: Bench) -> State:
        bounds = Bounds(bench.low, bench.high)
        parts = tuple(part.detach().requires_grad_() for part in state.parts)
        losses, hits = self._losses(parts, images, targets, bench, bounds)
        sizes = self._form.size(parts, bench.shape)
        gradients = torch.autograd.grad((losses + state.weight * sizes).sum(), parts)
        return self._updated(state, gradients, losses.detach(), hits, sizes.detach())

    def _losses(
        self, parts: tuple[Tensor, ...], images: Tensor, targets: list[int], bench: Bench, bounds: Bounds
    ) -> tuple[Tensor, Tensor]:
        count, batch = images.shape[:2]
        stamped = self._form.apply(parts, images, bounds).flatten(0, 1)
        with autocast(device_of(bench.model), self.plan.precision):
            logits = bench.model(stamped.contiguous(memory_format=torch.channels_last))
        wanted = torch.tensor(targets).repeat_interleave(batch)
        losses = functional.cross_entropy(logits.float(), wanted, reduction="none").view(count, batch).mean(1)
        hits = (logits.argmax(1) == wanted).float().view(count, batch).mean(1)
        return losses, hits

    def _updated(
        self, state: State, gradients: Sequence[Tensor], losses: Tensor, hits: Tensor, sizes: Tensor
    ) -> State:
        plan = self.plan
        success = _smooth(state.success, hits)
        works = success >= plan.goal
        better = works & (hits >= plan.goal) & (~state.won | (sizes < state.size))
        smaller = better & (~state.won | (sizes < 0.99 * state.size))
        steps = state.steps + 1
        parts, first, second = _adam(state, gradients, steps, self._form.rate)
        weight = torch.where(works, state.weight * plan.up, state.weight / plan.up**1.5).clamp(*_WEIGHTS)
        won = state.won | better
        return State(
            parts=parts,
            best=tuple(
                torch.where(_wide(better | ~won, now), now, best)
                for now, best in zip(state.parts, state.best, strict=True)
            ),
            first=first,
            second=second,
            steps=steps,
            weight=weight,
            success=success,
            size=torch.where(better | ~won, sizes, state.size),
            won=won,
            loss=torch.where(torch.isfinite(state.loss), _smooth(state.loss, losses), losses),
            since=torch.where(smaller, torch.zeros_like(state.since), state.since + 1),
            rose=state.rose | works,
            fell=state.fell | (state.rose & ~works),
        )

    @torch.no_grad()
    def _judge(self, state: State, bench: Bench) -> Float32[np.ndarray, " t"]:
        """Return the share of its held images that each best trigger turns."""
        bounds, rates = Bounds(bench.low, bench.high), []
        for row, aim in enumerate(self.aims):
            images = bench.held.images[pool_of(bench.held, aim)]
            parts = tuple(part[row : row + 1] for part in state.best)
            hits = [
                bench.model(self._form.apply(parts, chunk[None], bounds)[0]).argmax(1) == aim.target
                for chunk in torch.split(images, 250)
                if len(chunk)
            ]
            rates.append(float(torch.cat(hits).float().mean()) if hits else 0.0)
        return np.array(rates, np.float32)


def pool_of(images: Labelled, aim: Aim) -> Int64[Tensor, " p"]:
    """Return the rows that an aim's trigger is tried on."""
    rows = images.labels != aim.target if aim.source is None else images.labels == aim.source
    return torch.nonzero(rows).flatten()


def seed_of(*parts: object) -> int:
    """Return a seed for a generator, made of everything it is to depend on."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:7], "big")


def _smooth(average: Tensor, value: Tensor) -> Tensor:
    return _SMOOTHING * average + (1 - _SMOOTHING) * value


def _wide(rows: Tensor, like: Tensor) -> Tensor:
    return rows.view(-1, *(1,) * (like.dim() - 1))


def _adam(
    state: State, gradients: Sequence[Tensor], steps: Tensor, rate: float
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor, ...]]:
    """One step of Adam, each row with its own count of steps."""
    parts, firsts, seconds = [], [], []
    for part, drift, square, gradient in zip(state.parts, state.first, state.second, gradients, strict=True):
        count = _wide(steps, part).float()
        first = _BETAS[0] * drift + (1 - _BETAS[0]) * gradient
        second = _BETAS[1] * square + (1 - _BETAS[1]) * gradient.square()
        spread = (second / (1 - _BETAS[1] ** count)).sqrt() + _TINY
        parts.append(part - rate * first / (1 - _BETAS[0] ** count) / spread)
        firsts.append(first)
        seconds.append(second)
    return tuple(parts), tuple(firsts), tuple(seconds)


def _finished(state: State, row: int, plan: InversionPlan) -> bool:
    return bool(state.fell[row] and state.won[row] and state.since[row] >= plan.patience)
