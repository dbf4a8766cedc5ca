"""What moves a network most, and to which label: perturbations that a backdoor answers and little else does.

Theory of operation. Any network can be led to any label by a perturbation that is strong enough; one with a
backdoor is led to the backdoor's label by perturbations that are too weak for every other label. So for each
of several families, each kept weak, the best perturbation for every label is sought (faint noise, slow
shades, small patches, by gradients) or chosen from a fixed set (waves, reflections of other clean images),
and what the label that is reached best gains over the runner-up is the family's evidence. The labels with
most evidence are looked at more closely, and whatever gains over the runner-up in its family is to be
unlearned, the more it gains the more often.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float32, Int64
from torch import Tensor, nn
from torch.nn import functional

from calibration.prediction import autocast, predict
from calibration.recipe import Precision
from calibration.repair.perturbations import Perturbations, Range, joined, reflected_in_glass, sine_waves

__all__ = ["Suspects", "Suspicion", "gains_of", "suspect"]

CLOSER = 2
"""Labels that are looked at more closely, each twice."""

Put = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From what is sought, (p, …), to what is kept and what is added."""


@dataclass(frozen=True)
class Suspicion:
    """How perturbations are sought.

    Args:
        noise: Largest L2 norm of noise on an image of 3 x 32 x 32, the range of values being 1; scaled with
            the square root of the number of values.
        shade: The same of a shade, which changes slowly over the image.
        wave: Amplitude of a wave.
        patch: Side of a patch, as a share of the image's shorter side.
        places: Places where a patch is tried for each label.
        reflected: Clean images tried as reflections; five times as many at the closer look.
        steps: Of each search.
        images: Clean images a step and perturbation.
        judged: Clean images that rates are measured on.
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


@dataclass(frozen=True, eq=False)
class Suspects:
    """What is to be unlearned.

    Attributes:
        label: The label with most evidence.
        shares: By family, how much of the unlearning goes to it.
        perturbations: Those that gain over the runner-up of their family.
        weights: How often each is to be unlearned; they sum to 1.
        images: Images that were sent through the network.
    """

    label: int
    shares: dict[str, float]
    perturbations: Perturbations
    weights: Float32[Tensor, " p"]
    images: int


def suspect(
    model: nn.Module,
    images: Float32[Tensor, "n c h w"],
    ends: Range,
    classes: int,
    options: Suspicion,
    *,
    generator: torch.Generator,
    precision: Precision = "float32",
) -> Suspects:
    """Return what moves a network most; the network is left as it was.

    Args:
        model: In evaluation mode, asking for no gradients.
        images: Clean ones, as the network takes them.
        ends: Of its values.
        classes: k.
        options: How to seek.
        generator: Draws images and starts, on the CPU.
        precision: What the network computes in.
    """
    search = _Search(model, ends.unit(images), ends, options, generator, precision)
    coarse = search.all_families(torch.arange(classes), reflected=options.reflected, waves=True)
    evidence = torch.stack([_evidence(family, classes) for family in coarse]).sum(0)
    closer = evidence.topk(min(CLOSER, classes)).indices.repeat(2)
    fine = search.all_families(closer, reflected=5 * options.reflected, waves=False)
    families = [
        joined([part for part in (*coarse, *fine) if part.family == family.family], family.family)
        for family in coarse
    ]
    gains = [gains_of(family, classes).square() for family in families]
    total = sum(float(gain.sum()) for gain in gains)
    if total <= 0:  # nothing gains on anything: unlearn what moves it, whatever the label
        gains = [family.rates + 1e-3 for family in families]
        total = sum(float(gain.sum()) for gain in gains)
    weights = torch.cat(gains) / total
    chosen = weights.nonzero()[:, 0]
    shares = {family.family: float(gain.sum()) / total for family, gain in zip(families, gains, strict=True)}
    return Suspects(
        int(evidence.argmax()), shares, joined(families, "all").take(chosen), weights[chosen], search.images
    )


def gains_of(family: Perturbations, classes: int) -> Float32[Tensor, " p"]:
    """Return how much better each perturbation reaches its label than any reaches another; 0 where none.

    Only those to the label that is reached best gain anything.

    Args:
        family: With rates and labels.
        classes: k.
    """
    best = torch.zeros(classes).scatter_reduce(0, family.labels, family.rates, "amax")
    runner_up = best.topk(min(2, classes)).values[-1]
    return (family.rates - runner_up).clamp_min(0)


def _evidence(family: Perturbations, classes: int) -> Float32[Tensor, " k"]:
    """Return for each label the most that a perturbation to it gains."""
    return torch.zeros(classes).scatter_reduce(0, family.labels, gains_of(family, classes), "amax")


class _Search:
    """Seeks perturbations on one network."""

    def __init__(
        self,
        model: nn.Module,
        units: Tensor,
        ends: Range,
        options: Suspicion,
        generator: torch.Generator,
        precision: Precision,
    ) -> None:
        self.model, self.units, self.ends, self.options = model, units, ends, options
        self.generator, self.precision, self.images = generator, precision, 0
        self.shape = (units.shape[1], units.shape[2], units.shape[3])
        size = float(units[0].numel()) / (3 * 32 * 32)
        self.noise, self.shade = options.noise * size**0.5, options.shade * size**0.5
        self.judged = units[torch.randperm(len(units), generator=generator)[: options.judged]]
        self.predicted = self._predict(self.judged)

    def all_families(
        self, labels: Int64[Tensor, " m"], *, reflected: int, waves: bool
    ) -> list[Perturbations]:
        """Return what leads to each of the labels; a label that is named twice is sought twice."""
        found = [self.noises(labels), self.shades(labels), self.patches(labels)]
        if waves:
            found.append(self.waves())
        return [*found, self.reflections(reflected)]

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
        """Return small patches for each label, at the places where the network looks most for it."""
        side = max(2, round(self.options.patch * min(self.shape[1:])))
        chosen = self._windows(labels, side, self.options.places)
        aims = labels.repeat_interleave(self.options.places)
        start = torch.rand((len(aims), *self.shape), generator=self.generator).to(self.units.device)
        keep = 1 - chosen
        patch = self._seek(
            start,
            aims,
            lambda sought: (keep, sought * chosen),
            lambda sought, slope: (sought - 0.15 * slope.sign()).clamp(0, 1),
        )
        return self._judged("patch", keep, patch * chosen, aims)

    def waves(self) -> Perturbations:
        """Return waves over the image, whatever label each leads to."""
        add = sine_waves(self.shape, self.options.wave).to(self.units.device)
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
            self.images += len(images)
            sought = move(sought.detach(), slope)
        return sought.detach()

    def _windows(self, labels: Int64[Tensor, " m"], side: int, places: int) -> Tensor:
        """Return masks of the windows in which the loss of each label depends most on the pixels."""
        each = 2 * self.options.images
        rows = torch.randint(len(self.units), (len(labels) * each,), generator=self.generator)
        added = torch.zeros((len(labels), *self.shape), device=self.units.device, requires_grad=True)
        logits = self.model(self.ends.full(self.units[rows] + added.repeat_interleave(each, 0)))
        loss = functional.cross_entropy(logits.float(), labels.repeat_interleave(each).to(logits.device))
        (slope,) = torch.autograd.grad(loss, added)
        self.images += len(rows)
        energy = functional.avg_pool2d(slope.abs().sum(1, keepdim=True), side, 1)[:, 0]
        masks = torch.zeros(len(labels), places, 1, *self.shape[1:])
        for row in range(len(labels)):
            left = energy[row].cpu().clone()
            for place in range(places):
                top, start = divmod(int(left.argmax()), left.shape[1])
                masks[row, place, 0, top : top + side, start : start + side] = 1
                half = max(1, side // 2)
                left[max(0, top - half) : top + half + 1, max(0, start - half) : start + half + 1] = -1
        return masks.flatten(0, 1).to(self.units.device)

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
        self.images += len(units)
        return predict(self.model, self.ends.full(units), precision=self.precision).argmax(1).cpu()

    def _rate(self, moved: Tensor, label: int) -> float:
        others = self.predicted != label
        return float((moved[others] == label).float().mean()) if int(others.sum()) > 5 else 0.0


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
