"""Seeks perturbations that lead a network to a label: for every label by gradients, or from a fixed set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float32, Int64
from torch import Tensor, nn
from torch.nn import functional

from calibration.prediction import autocast, predict
from calibration.progress import Progress
from calibration.recipe import Precision
from calibration.repair.perturbations import Perturbations, Range, joined, reflected_in_glass, sine_waves
from calibration.repair.windows import Windows, likely_windows, steepest_windows

__all__ = ["Search", "Suspicion"]

LARGEST_BATCH = 2000
"""Images of 3 x 32 x 32 a step, at most; of larger ones as many fewer. More labels are sought lot by lot."""

KEPT = 8
"""Labels whose perturbations are kept where not all are sought in one lot: two of them decide."""

Put = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From what is sought, (p, …), to what is kept and what is added."""

Seek = Callable[[Int64[Tensor, " m"]], Perturbations]


@dataclass(frozen=True)
class Suspicion:
    """How perturbations are sought.

    Args:
        noise: Largest L2 norm of noise on an image of 3 x 32 x 32, the range of values being 1; scaled with
            the square root of the number of values.
        shade: The same of a shade, which changes slowly over the image.
        wave: Amplitude of a wave.
        patch: Side of a patch, as a share of the image's shorter side.
        places: Places where a patch is sought for each label: so many where random patches move it most, and
            as many where its gradients are largest.
        reflected: Clean images tried as reflections; five times as many at the closer look.
        steps: Of each search.
        images: Clean images a step and perturbation.
        judged: Clean images that rates are measured on.
        floor: Share of the unlearning that goes to what moves the network at all, whatever it gains.
    """

    noise: float = 0.5
    shade: float = 2.0
    wave: float = 0.15
    patch: float = 0.125
    places: int = 3
    reflected: int = 40
    steps: int = 25
    images: int = 16
    judged: int = 64
    floor: float = 0.4


class Search:
    """Seeks perturbations on one network.

    A label costs about 3,600 images, two thirds of them forwards and back, with the default options: ten
    labels are a matter of a minute for a small network on a CPU core, a thousand want a GPU.

    Args:
        model: In evaluation mode, asking for no gradients.
        units: Clean images, from 0 to 1.
        ends: Of the network's values.
        options: How to seek.
        generator: Draws images and starts, on the CPU.
        precision: What the network computes in.
        bar: Told of images that were done.
    """

    def __init__(
        self,
        model: nn.Module,
        units: Tensor,
        ends: Range,
        options: Suspicion,
        generator: torch.Generator,
        precision: Precision,
        bar: Progress,
    ) -> None:
        self.model, self.units, self.ends, self.options = model, units, ends, options
        self.generator, self.precision, self.bar, self.images = generator, precision, bar, 0
        self.shape = (units.shape[1], units.shape[2], units.shape[3])
        size = float(units[0].numel()) / (3 * 32 * 32)
        self.noise, self.shade = options.noise * size**0.5, options.shade * size**0.5
        self.judged = units[torch.randperm(len(units), generator=generator)[: options.judged]]
        logits = self._logits(self.judged)
        self.predicted, self.classes = logits.argmax(1).cpu(), logits.shape[1]
        self._likely: Windows | None = None

    def all_families(
        self, labels: Int64[Tensor, " m"], *, reflected: int, waves: bool
    ) -> list[Perturbations]:
        """Return what leads to each of the labels; a label that is named twice is sought twice."""
        each, places, judged = self.options.images, self.options.places, len(self.judged)
        sought = (2 + 2 * places) * (self.options.steps * each + judged) + 2 * each
        self.bar.expect(len(labels) * sought + min(reflected, len(self.units)) * judged)
        found = [
            self._lot_by_lot(self.noises, labels, each),
            self._lot_by_lot(self.shades, labels, each),
            self._lot_by_lot(self.patches, labels, each * 2 * places),
        ]
        if waves:
            found.append(self.waves())
        return [*found, self.reflections(reflected)]

    def _lot_by_lot(self, seek: Seek, labels: Int64[Tensor, " m"], images: int) -> Perturbations:
        """Seek perturbations for some labels at a time, so that a step has not too many images.

        Args:
            seek: For a lot of labels.
            labels: All.
            images: Of a step, for each label.
        """
        first, *others = torch.split(labels, max(1, self._most() // images))
        found = seek(first)
        for lot in others:
            found = _best_reached(joined([found, seek(lot)], found.family))
        return found

    def noises(self, labels: Int64[Tensor, " m"]) -> Perturbations:
        """Return faint noise for each label."""
        whole = torch.ones(len(labels), 1, *self.shape[1:], device=self.units.device)
        noise = self._seek(
            self._start(len(labels)), labels, lambda sought: (whole, sought), _within(self.noise)
        )
        return self._judged("noise", whole, noise, labels)

    def shades(self, labels: Int64[Tensor, " m"]) -> Perturbations:
        """Return slow changes of brightness and colour over the image, for each label."""
        whole = torch.ones(len(labels), 1, *self.shape[1:], device=self.units.device)
        down, across = (_slow(size).to(self.units.device) for size in self.shape[1:])
        start = self._start(len(labels))[:, :, : down.shape[0], : across.shape[0]]
        shades = self._seek(
            start, labels, lambda sought: (whole, down.T @ sought @ across), _within(self.shade)
        )
        return self._judged("shade", whole, down.T @ shades @ across, labels)

    def patches(self, labels: Int64[Tensor, " m"]) -> Perturbations:
        """Return small patches for each label, where tried ones and gradients say that it is looked for."""
        side = max(2, round(self.options.patch * min(self.shape[1:])))
        tried = self._tried(side)
        places = len(tried.masks) // self.classes
        first = tried.of(labels, places)
        second = self._steepest(labels, side, self.options.places)
        masks = torch.cat([first.masks, second.masks])
        aims = torch.cat([labels.repeat_interleave(places), labels.repeat_interleave(self.options.places)])
        keep = 1 - masks
        patch = self._seek(
            torch.cat([first.patches, second.patches]),
            aims,
            lambda sought: (keep, sought * masks),
            lambda sought, slope: (sought - 0.15 * slope.sign()).clamp(0, 1),
        )
        return self._judged("patch", keep, patch * masks, aims)

    def waves(self) -> Perturbations:
        """Return waves over the image, whatever label each leads to."""
        add = sine_waves(self.shape, self.options.wave).to(self.units.device)
        self.bar.expect(len(add) * len(self.judged))
        return self._named("wave", torch.ones(len(add), 1, *self.shape[1:], device=add.device), add)

    def reflections(self, count: int) -> Perturbations:
        """Return clean images as they would be reflected, whatever label each leads to."""
        rows = torch.randperm(len(self.units), generator=self.generator)[:count]
        add = 0.5 * reflected_in_glass(self.units[rows])
        keep = torch.full((len(add), 1, *self.shape[1:]), 0.7, device=add.device)
        return self._named("reflection", keep, add)

    def _start(self, count: int) -> Tensor:
        start = torch.randn((count, *self.shape), generator=self.generator)
        return 1e-3 * start.to(self.units.device)

    def _seek(
        self,
        sought: Tensor,
        labels: Int64[Tensor, " p"],
        put: Put,
        move: Callable[[Tensor, Tensor], Tensor],
    ) -> Tensor:
        """Go down the loss of each label, on other images at each step."""
        each = self.options.images
        aims = labels.repeat_interleave(each).to(self.units.device)
        for _ in range(self.options.steps):
            rows = torch.randint(len(self.units), (len(labels) * each,), generator=self.generator)
            sought = sought.detach().requires_grad_(True)
            keep, add = (part.repeat_interleave(each, 0) for part in put(sought))
            images = self.ends.full((self.units[rows] * keep + add).clamp(0, 1))
            with autocast(images.device, self.precision):
                logits = self.model(images.contiguous(memory_format=torch.channels_last)).float()
            loss = functional.cross_entropy(logits, aims, reduction="sum") / each
            (slope,) = torch.autograd.grad(loss, sought)
            self._count(len(images))
            sought = move(sought.detach(), slope)
        return sought.detach()

    def _tried(self, side: int) -> Windows:
        """Return the windows in which patches move the network, for every label; tried once."""
        if self._likely is None:
            few, most = self.judged[: self.options.images], self._most()
            self._likely = likely_windows(
                self._logits, few, side, self.options.places, generator=self.generator, most=most
            )
            self.bar.expect(self._likely.tried)
        return self._likely

    def _most(self) -> int:
        """Return how many images may go through the network at once."""
        return max(1, int(LARGEST_BATCH * min(1.0, 3 * 32 * 32 / self.judged[0].numel())))

    def _steepest(self, labels: Int64[Tensor, " m"], side: int, places: int) -> Windows:
        """Return the windows in which the loss of each label depends most on the pixels."""
        each = 2 * self.options.images
        rows = torch.randint(len(self.units), (len(labels) * each,), generator=self.generator)
        added = torch.zeros((len(labels), *self.shape), device=self.units.device, requires_grad=True)
        logits = self.model(self.ends.full(self.units[rows] + added.repeat_interleave(each, 0)))
        loss = functional.cross_entropy(logits.float(), labels.repeat_interleave(each).to(logits.device))
        (slope,) = torch.autograd.grad(loss, added)
        self._count(len(rows))
        return steepest_windows(slope, side, places, self.generator)

    def _logits(self, units: Tensor) -> Tensor:
        self._count(len(units))
        return predict(self.model, self.ends.full(units), precision=self.precision)

    def _judged(self, family: str, keep: Tensor, add: Tensor, labels: Int64[Tensor, " p"]) -> Perturbations:
        """Measure how often each leads to its label."""
        found = Perturbations(family, keep.cpu(), add.detach().cpu(), labels, torch.zeros(len(labels)))
        rates = [self._rate(self._moved(found, row), int(labels[row])) for row in range(len(labels))]
        return Perturbations(family, found.keep, found.add, labels, torch.tensor(rates))

    def _named(self, family: str, keep: Tensor, add: Tensor) -> Perturbations:
        """Give each the label that it leads to most often."""
        none = torch.zeros(len(add), dtype=torch.int64)
        found = Perturbations(family, keep.cpu(), add.cpu(), none, torch.zeros(len(add)))
        labels, rates = none.clone(), torch.zeros(len(add))
        for row in range(len(add)):
            moved = self._moved(found, row)
            for label in sorted(set(moved.tolist())):
                rate = self._rate(moved, label)
                if rate > rates[row]:
                    labels[row], rates[row] = label, rate
        return Perturbations(family, found.keep, found.add, labels, rates)

    def _moved(self, found: Perturbations, row: int) -> Tensor:
        return self._predict(found.put(self.judged, torch.full((len(self.judged),), row)))

    def _predict(self, units: Tensor) -> Tensor:
        return self._logits(units).argmax(1).cpu()

    def _count(self, images: int) -> None:
        self.images += images
        self.bar.step(images)

    def _rate(self, moved: Tensor, label: int) -> float:
        others = self.predicted != label
        return float((moved[others] == label).float().mean()) if int(others.sum()) > 5 else 0.0


def _best_reached(found: Perturbations) -> Perturbations:
    """Return the perturbations to the few labels that are reached best."""
    best = torch.zeros(int(found.labels.max()) + 1).scatter_reduce(0, found.labels, found.rates, "amax")
    labels = best.topk(min(KEPT, len(best))).indices
    return found.take(torch.isin(found.labels, labels))


def _within(norm: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a step down of a fifth of the norm, back into the ball if it leads out."""

    def move(sought: Tensor, slope: Tensor) -> Tensor:
        moved = sought - 0.2 * norm * slope / _norms(slope)
        inside: Tensor = moved * (norm / _norms(moved)).clamp(max=1)
        return inside

    return move


def _norms(tensors: Tensor) -> Tensor:
    norms: Tensor = tensors.flatten(1).norm(dim=1).clamp_min(1e-12)[:, None, None, None]
    return norms


def _slow(size: int) -> Float32[Tensor, "m size"]:
    """Return the slowest quarter of the cosines over so many pixels, each of norm 1."""
    places = (torch.arange(size) + 0.5) / size
    rows: Tensor = torch.stack([torch.cos(torch.pi * number * places) for number in range(max(1, size // 4))])
    unit: Tensor = rows / rows.norm(dim=1, keepdim=True)
    return unit
