"""Finds, for one class of images, the small patch that leads it astray: where to put it, and how it looks.

A patch of a few pixels is tried at every place of a grid, each place with a pattern of its own; after a few
steps the better places go on, until one is left. No target is asked for: where a backdoor waits for images of
this class, all of them go to one class, and which one that is, is what is found.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from calibration.prediction import autocast, device_of
from calibration.recipe import Precision
from calibration.scan.base import Arrays, Bench, Unit
from calibration.scan.inversion import Aim, pool_of, seed_of

__all__ = ["Heat", "SourceSearch", "grid_of"]

Place = tuple[int, int]

AT_ONCE = 256
"""Images in one call of the model."""
MARGIN = 5.0
"""Logits by which another class has to win before an image no longer counts."""
RATE = 0.3
"""Adam's, on the logits of the pattern's values."""
BETAS = (0.5, 0.9)


@dataclass(frozen=True)
class Heat:
    """A stretch of the search: how many places go into it, with how many steps and images."""

    places: int
    steps: int
    batch: int


@dataclass(frozen=True)
class SourceSearch(Unit):
    """The search for one class.

    Args:
        source: The class.
        size: Height and width of the patch, in pixels.
        heats: Stretches; a first one of fewer places than there are leaves out the last.
        seed: Of starting patterns and images.
        precision: Of the model's arithmetic during the search.
    """

    source: int
    size: int
    heats: tuple[Heat, ...]
    seed: int
    precision: Precision = "bfloat16"

    @property
    def key(self) -> str:
        """The class, and a digest of all of it."""
        return f"source-{self.source}-{hashlib.sha256(repr(self).encode()).hexdigest()[:32]}"

    @property
    def weight(self) -> int:
        """Images through the model, with a guess at the first heat's places."""
        return sum(heat.places * heat.steps * heat.batch for heat in self.heats)

    def run(self, bench: Bench) -> Arrays:
        """Return ``place`` (row, column), ``pattern``, and what :meth:`_judge` measures of it."""
        generator = torch.Generator().manual_seed(seed_of(self.seed, "source", self.source))
        images = bench.clean.images[pool_of(bench.clean, Aim(-1, self.source))]
        places = grid_of(bench.shape[1:], self.size)
        patterns = torch.randn((len(places), bench.shape[0], self.size, self.size), generator=generator)
        losses = torch.zeros(len(places))
        for heat in self.heats:
            order = torch.argsort(losses, stable=True)[: heat.places].tolist()
            places, patterns = [places[row] for row in order], patterns[order]
            patterns, losses = self._improve(bench, images, places, patterns, heat, generator)
        best = int(losses.argmin())
        pattern = _in_range(patterns[best : best + 1].sigmoid(), bench)[0]
        return {
            "place": np.array(places[best], np.int64),
            "pattern": pattern.numpy(),
            **self._judge(bench, pattern, places[best]),
        }

    def _improve(
        self,
        bench: Bench,
        images: Tensor,
        places: list[Place],
        patterns: Tensor,
        heat: Heat,
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor]:
        """Return better patterns and how they did: the mean loss over the last half of the steps."""
        group = max(1, AT_ONCE // heat.batch)
        found, told = [], []
        drawn = torch.randint(len(images), (heat.steps, heat.batch), generator=generator)
        for start in range(0, len(places), group):
            part = patterns[start : start + group].clone().requires_grad_()
            optimiser = torch.optim.Adam([part], RATE, betas=BETAS)
            losses = []
            for step in range(heat.steps):
                loss = self._losses(bench, images[drawn[step]], places[start : start + group], part)
                optimiser.zero_grad()
                (part.grad,) = torch.autograd.grad(loss.sum(), [part])
                optimiser.step()
                losses.append(loss.detach())
            found.append(part.detach())
            told.append(torch.stack(losses[len(losses) // 2 :]).mean(0))
        return torch.cat(found), torch.cat(told)

    def _losses(
        self, bench: Bench, images: Tensor, places: list[Place], patterns: Tensor
    ) -> Float32[Tensor, " p"]:
        """Return for each place by how much the class still wins, averaged over the images."""
        values = _in_range(patterns.sigmoid(), bench)
        stamped = torch.cat(
            [_paste(images, value, place) for value, place in zip(values, places, strict=True)]
        )
        with autocast(device_of(bench.model), self.precision):
            logits = bench.model(stamped.contiguous(memory_format=torch.channels_last)).float()
        own = logits[:, self.source]
        others = logits.masked_fill(torch.arange(logits.shape[1]) == self.source, -torch.inf).amax(1)
        won: Tensor = own - others + MARGIN
        return won.clamp_min(0).view(len(places), -1).mean(1)

    @torch.no_grad()
    def _judge(self, bench: Bench, pattern: Tensor, place: Place) -> Arrays:
        """Measure the patch on those held images of the source that go right without it.

        ``shares`` are those that go to each class. ``shift`` is how far the patch moves the logits of the
        class that most go to against the source's, at the median, in the model's usual margins: between
        classes that are much alike a small push is enough, and a small patch gives it to a clean model too.
        """
        held = bench.held.images[pool_of(bench.held, Aim(-1, self.source))]
        before = _logits(bench, held)
        right = before.argmax(1) == self.source
        held, before = held[right], before[right]
        shares = np.zeros(bench.classes, np.float32)
        if not len(held):
            return {"shares": shares, "shift": np.zeros((), np.float32)}
        after = _logits(bench, _paste(held, pattern, place))
        shares += np.bincount(after.argmax(1).numpy(), minlength=bench.classes) / len(held)
        elsewhere = np.where(np.arange(bench.classes) == self.source, -1.0, shares)
        target = int(elsewhere.argmax())
        leads = [logits[:, target] - logits[:, self.source] for logits in (before, after)]
        moved = float((leads[1] - leads[0]).median())
        return {"shares": shares, "shift": np.array(moved / _usual_margin(bench), np.float32)}


def grid_of(sides: tuple[int, ...], size: int) -> list[Place]:
    """Return places that tile an image, the edges among them.

    Examples:
        >>> grid_of((4, 9), 4)
        [(0, 0), (0, 2), (0, 5)]
    """
    rows, columns = (_spread(side - size, size) for side in sides)
    return [(row, column) for row in rows for column in columns]


def _spread(last: int, stride: int) -> list[int]:
    count = -(-max(last, 0) // stride) + 1
    return sorted({round(place) for place in np.linspace(0, max(last, 0), count).tolist()})


def _paste(images: Tensor, pattern: Tensor, place: Place) -> Tensor:
    row, column = place
    height, width = pattern.shape[-2:]
    pads = (column, images.shape[3] - column - width, row, images.shape[2] - row - height)
    mask = torch.nn.functional.pad(torch.ones_like(pattern[:1]), pads)
    pasted: Tensor = images * (1 - mask) + torch.nn.functional.pad(pattern, pads)
    return pasted


def _in_range(shares: Tensor, bench: Bench) -> Tensor:
    span = (bench.high - bench.low)[:, None, None]
    values: Tensor = bench.low[:, None, None] + shares * span
    return values


def _logits(bench: Bench, images: Tensor) -> Float32[Tensor, "n k"]:
    parts = [bench.model(part).float() for part in torch.split(images, AT_ONCE) if len(part)]
    return torch.cat(parts) if parts else torch.empty((0, bench.classes))


def _usual_margin(bench: Bench) -> float:
    """Return by how much the first class leads the second on clean images, at the median."""
    first, second = _logits(bench, bench.clean.images).topk(2, dim=1).values.unbind(1)
    return max(float((first - second).median()), 1e-6)
