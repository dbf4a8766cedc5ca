"""Learns, for each label, a distribution of small patches that lead to it; tells if one label stands out.

::

    label ──PlaceSearch──▶ where a patch works best ──PatchTraining, one for each β──▶ PatchDistribution
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Final, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, UInt8
from torch import Tensor
from torch.nn import functional

from calibration.attacks.base import Attack
from calibration.attacks.inverted import Inverted
from calibration.attacks.tensors import arrays_of
from calibration.errors import DataError, OptionError
from calibration.prediction import device_of
from calibration.scan.base import (
    Arrays,
    Bench,
    Executor,
    Finding,
    FoundTrigger,
    Labelled,
    Scanner,
    ScanReport,
    Unit,
    Verdict,
)
from calibration.scan.executor import gather
from calibration.scan.mutual_information import Information, Statistics
from calibration.scan.patch_generator import (
    CHUNKS,
    Generator,
    PatchDistribution,
    Place,
    Where,
    diversity,
    in_range,
    paste,
    places_of,
    scatter,
)

__all__ = ["Learned", "PatchTraining", "PlaceSearch", "TriggerDistribution"]

_WEIGHTS: Final = "weights."
_AT_ONCE: Final = 256
"""Images in one call of the model, where the caller does not say."""
_PICTURES: Final = 4
_SHOWN: Final = 3
_FEWEST_LABELS: Final = 4
"""Fewer have no middle to stand out from."""
_STARTING_LOGIT: Final = 2.0
_FLOOR: Final = 0.5
"""Least spread of the labels' log-odds: less is noise of a few hundred images."""


@dataclass(frozen=True)
class PlaceSearch(Unit):
    """Looks where a patch leads to a label: optimises one patch at each place of a grid, a few steps.

    Attributes:
        target: The label.
        size: Height and width of a patch.
        grid: Places along each side, both edges among them.
        images: Clean images in a step, the same for all places.
        steps: Steps.
        rate: Adam's, on the patches' logits.
        seed: Of what is drawn.
    """

    target: int
    size: int
    grid: int
    images: int
    steps: int
    rate: float
    seed: int

    @property
    def key(self) -> str:
        """All of it."""
        return _key("places", self)

    @property
    def weight(self) -> int:
        """Images through the model."""
        return self.grid**2 * self.images * (2 * self.steps + 1)

    def run(self, bench: Bench) -> Arrays:
        """Return places, the mean target probability at each, and the patches, from 0 to 1."""
        random = _random(self.key)
        images = _of_others(bench.clean, self.target)
        _, height, width = bench.shape
        places = [
            (top, left)
            for top in _spread(height - self.size, self.grid)
            for left in _spread(width - self.size, self.grid)
        ]
        group = max(1, _AT_ONCE // self.images)
        parts = [
            self._search(bench, images, places[start : start + group], random)
            for start in range(0, len(places), group)
        ]
        return {
            "places": np.array(places, np.int64),
            "probability": torch.cat([part[0] for part in parts]).numpy(),
            "patches": torch.cat([part[1] for part in parts]).numpy(),
        }

    def _search(
        self, bench: Bench, images: Tensor, places: Sequence[Place], random: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        shape = len(places), bench.shape[0], self.size, self.size
        logits = torch.randn(shape, generator=random).requires_grad_()
        optimiser = torch.optim.Adam([logits], self.rate)
        for _ in range(self.steps):
            stamped = _at_each(bench, self._draw(images, random), torch.sigmoid(logits), places)
            told = bench.model(stamped)
            goal = torch.full((len(stamped),), self.target, device=told.device)
            optimiser.zero_grad()
            torch.autograd.backward(functional.cross_entropy(told, goal, reduction="sum") / self.images)
            optimiser.step()
        with torch.no_grad():
            patches = torch.sigmoid(logits)
            stamped = _at_each(bench, self._draw(images, random), patches, places)
            told = bench.model(stamped).softmax(dim=1)[:, self.target].cpu()
        return told.view(len(places), -1).mean(dim=1), patches

    def _draw(self, images: Tensor, random: torch.Generator) -> Tensor:
        return images[torch.randint(len(images), (self.images,), generator=random)]


@dataclass(frozen=True)
class PatchTraining(Unit):
    """Trains a generator of patches for one label and one β, and tries its patches on images.

    Attributes:
        target: The label.
        beta: Target probability above which a patch gains nothing.
        alpha: Weight of the mutual information of noise and patch.
        size: Height and width of a patch.
        where: Where patches are pasted.
        start: A patch to begin around, from 0 to 1, flat; none for grey.
        steps: Steps of the generator, and of the estimate of information.
        batch: Images in a step, each with a patch of its own.
        crowd: Patches in a step that the information is estimated on; the first ones are pasted.
        rate: Adam's, of both.
        chunk: Noise numbers a layer of the generator gets.
        width: Units of a hidden layer.
        noise: Standard deviation of what is added to patches, as a share of the value range.
        samples: Patches drawn to find the best.
        judged: Held images that patches are tried on, at most.
        seed: Of what is drawn.
    """

    target: int
    beta: float
    alpha: float
    size: int
    where: Where
    start: tuple[float, ...] | None
    steps: int
    batch: int
    crowd: int
    rate: float
    chunk: int
    width: int
    noise: float
    samples: int
    judged: int
    seed: int

    @property
    def key(self) -> str:
        """All of it."""
        return _key("patches", self)

    @property
    def weight(self) -> int:
        """Images through the model."""
        return 2 * self.steps * self.batch + self.samples * self.batch + 2 * self.judged

    def run(self, bench: Bench) -> Arrays:
        """Return the generator's weights, sampled patches, and how patches do on clean and held images."""
        random = _random(self.key)
        net, information = self._train(bench, random)
        with torch.no_grad():
            drawn = self._drawn(net, self.samples, random)
            on_clean = self._asr_of_each(bench, drawn, random)
            best = drawn[int(on_clean.argmax())]
            held = _of_others(bench.held, self.target)[: self.judged]
            of_all = self._asr(bench, held, self._drawn(net, len(held), random), random)
            of_best = self._asr(bench, held, best[None].expand(len(held), -1, -1, -1), random)
        weights = {f"{_WEIGHTS}{name}": value for name, value in arrays_of(net).items()}
        return {
            **weights,
            "patches": drawn.numpy(),
            "asr_clean": on_clean.numpy(),
            "best": best.numpy(),
            "asr": np.array(of_all),
            "asr_best": np.array(of_best),
            "information": np.array(information),
        }

    def _train(self, bench: Bench, random: torch.Generator) -> tuple[Generator, float]:
        channels, height, width = bench.shape
        net, statistics = self._networks(channels, random)
        optimiser = torch.optim.Adam(net.parameters(), self.rate, betas=(0.5, 0.999))
        information = Information(statistics, rate=self.rate)
        images, places = (
            _of_others(bench.clean, self.target),
            places_of(self.where, (height, width), self.size),
        )
        bits: list[float] = []
        for _ in range(self.steps):
            noise, other = (net.noise(self.crowd, random) for _ in range(2))
            patches = net(noise)
            patches = patches + self.noise * torch.randn(patches.shape, generator=random)
            bits.append(information.learn(noise, patches.flatten(1), other))
            rows = torch.randint(len(images), (self.batch,), generator=random)
            place = places[int(torch.randint(len(places), (), generator=random))]
            told = bench.model(_stamped(bench, images[rows], patches[: self.batch], place)).softmax(dim=1)
            content = told[:, self.target].clamp(max=self.beta).mean()
            optimiser.zero_grad()
            torch.autograd.backward(
                -content - self.alpha * information.of(noise, patches.flatten(1), other).to(content.device)
            )
            optimiser.step()
        return net.eval(), float(np.mean(bits[-max(1, len(bits) // 4) :]))

    def _networks(self, channels: int, random: torch.Generator) -> tuple[Generator, Statistics]:
        numbers = channels * self.size**2
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**62, (), generator=random)))
            net = Generator(channels, self.size, chunk=self.chunk, width=self.width)
            statistics = Statistics(CHUNKS * self.chunk, numbers, self.width)
        if self.start is not None:
            logits = torch.logit(torch.tensor(self.start), eps=1e-6)
            with torch.no_grad():
                net.last.bias.copy_(logits.clamp(-_STARTING_LOGIT, _STARTING_LOGIT))
        return net, statistics

    def _drawn(self, net: Generator, count: int, random: torch.Generator) -> Tensor:
        patches: Tensor = net(net.noise(count, random))
        return (patches + self.noise * torch.randn(patches.shape, generator=random)).clamp(0, 1)

    def _asr_of_each(self, bench: Bench, patches: Tensor, random: torch.Generator) -> Tensor:
        """Return the success rate of each patch on a batch of clean images, the same for all."""
        images = _of_others(bench.clean, self.target)
        few = images[torch.randperm(len(images), generator=random)[: self.batch]]
        rates = [self._asr(bench, few, patch[None].expand(len(few), -1, -1, -1), random) for patch in patches]
        return torch.tensor(rates)

    def _asr(self, bench: Bench, images: Tensor, patches: Tensor, random: torch.Generator) -> float:
        """Return the success rate of patches, one for each image, each at a place of its own."""
        where, hits = device_of(bench.model), 0
        for rows in torch.split(torch.arange(len(images)), _AT_ONCE):
            laid = in_range(patches[rows], bench.low.cpu(), bench.high.cpu())
            stamped = scatter(images[rows].to(where), laid.to(where), self.where, random)
            hits += int((bench.model(stamped).argmax(dim=1) == self.target).sum())
        return hits / len(images)


@dataclass(frozen=True, eq=False)
class Learned:
    """What was learned about one label.

    Attributes:
        distribution: The patches.
        best: The patch that did best on clean images, from 0 to 1.
        asr_best: Its success rate on held images.
        asr: Success rate of a drawn patch on held images, for each β.
        information: Mutual information of noise and patch, in nats, for each β.
        patches: Some drawn from all generators, from 0 to 1.
    """

    distribution: PatchDistribution
    best: Float32[np.ndarray, "c s s"]
    asr_best: float
    asr: tuple[float, ...]
    information: tuple[float, ...]
    patches: Float32[np.ndarray, "m c s s"]


@dataclass(frozen=True)
class TriggerDistribution(Scanner):
    r"""Models all small patches that lead to a label, not one of them; for any patch of that size or smaller.

    For each label and each β a generator G of patches is trained with an estimator of information:

    .. math:: \max_G\; \mathbb{E}\bigl[\min(F_t(x \oplus G(z)), \beta)\bigr] + \alpha\, I(G(z) + \epsilon; z)

    A label is flagged where the best patch turns at least ``goal`` of the held images of other classes into
    it, the patches drawn from one of the generators turn half of that, and its log-odds stand out from the
    other labels' by ``outlier`` robust deviations. What it answers for one label alone is never
    ``backdoored``: there is nothing to stand out from.

    Args:
        labels: Labels to look at; all if None.
        size: Height and width of a patch.
        betas: Target probabilities above which a patch gains nothing; one generator each.
        alpha: Weight of the mutual information.
        where: ``found`` looks for the place first. A network learns a patch that was always in one corner
            often together with that corner: on a CIFAR-10 network a trigger that always works at (29, 29)
            works on 1 % of the images at most other places, so that patches that go anywhere reach 17 %
            where those at its place reach 99 %. ``anywhere`` is the paper's; a row and a column put patches
            there.
        steps: Steps of each generator.
        batch: Images in a step.
        crowd: Patches in a step that the information is estimated on, no fewer than ``batch``; the first
            ones are pasted.
        rate: Adam's, of generators and estimators.
        chunk: Noise numbers a layer of a generator gets; four times that in all.
        width: Units of a hidden layer.
        noise: Standard deviation of what is added to patches, as a share of the value range.
        samples: Patches drawn from each generator to find the best.
        judged: Held images that patches are tried on, at most.
        grid: Places along each side that ``found`` tries.
        grid_steps: Steps at each of them.
        grid_images: Images in such a step.
        goal: Success rate that a backdoor has at least.
        outlier: Robust deviations that a backdoor's log-odds stand out at least.

    Raises:
        OptionError: If an option has no meaning.

    References:
        Qiao, Yang and Li, Defending Neural Backdoors via Generative Distribution Modeling, NeurIPS 2019,
        arXiv 1910.04749. Belghazi et al., MINE, ICML 2018, arXiv 1801.04062.

    Deviations:
        The paper is told the target class, repairs and does not detect: the loop over labels and the verdict
        are ours. It pastes each batch's patches at one random place; so do we under ``anywhere`` and
        ``corners``, while ``found`` takes the place where an optimised patch raises the target's probability
        most, and begins the generators around that patch. Patches with their noise are clipped to the
        model's value range. Only images of other classes are used. Fewer steps at a higher rate than 10
        epochs of 8,000 images at 2e-4, and narrower layers, so that a label takes a minute. So few
        steps do not teach the estimator much about 64 noise numbers (0.0 nats, so that patches differ by
        their noise alone); with 8 it comes to 1.4, and patches work as well. It also sees more patches than
        are pasted, which costs no pass of the model.
    """

    name: ClassVar[str] = "trigger_distribution"

    labels: tuple[int, ...] | None = None
    size: int = 3
    betas: tuple[float, ...] = (0.5, 0.8, 0.9)
    alpha: float = 0.1
    where: Literal["found"] | Where = "found"
    steps: int = 150
    batch: int = 32
    crowd: int = 256
    rate: float = 2e-3
    chunk: int = 2
    width: int = 128
    noise: float = 0.1
    samples: int = 16
    judged: int = 500
    grid: int = 6
    grid_steps: int = 20
    grid_images: int = 8
    goal: float = 0.8
    outlier: float = 3.0

    def __post_init__(self) -> None:
        if self.labels == ():
            raise OptionError("labels: expected some, or None for all, got none")
        if not self.betas or not all(0 < beta <= 1 for beta in self.betas):
            raise OptionError(f"betas: expected probabilities above 0, got {self.betas}")
        if len(set(self.betas)) != len(self.betas):
            raise OptionError(f"betas: expected each once, got {self.betas}")
        least = {
            "batch": 2,
            "samples": 2,
            "grid": 2,
            "alpha": 0,
            "noise": 0,
            "steps": 1,
            "size": 1,
            "judged": 1,
        }
        least |= {"chunk": 1, "width": 1, "grid_steps": 0, "grid_images": 1, "outlier": 0}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise OptionError(f"{name}: expected {value} or more, got {getattr(self, name)}")
        if self.crowd < self.batch:
            raise OptionError(f"crowd: expected {self.batch} or more, as many as a batch, got {self.crowd}")
        if not 0 < self.goal <= 1:
            raise OptionError(f"goal: expected a share above 0, got {self.goal}")

    def scan(self, bench: Bench, *, seed: int, executor: Executor) -> ScanReport:
        """Look, and report; see :class:`calibration.scan.base.Scanner`."""
        began = time.perf_counter()
        learned = self.learn(bench, seed=seed, executor=executor)
        findings = self._findings(learned)
        by_target = {one.distribution.target: one for one in learned}
        verdict, reason = self._verdict(findings, bench)
        shown = [place for place, finding in enumerate(findings) if finding.flagged or place < _SHOWN]
        return ScanReport(
            scanner=self.name,
            verdict=verdict,
            reasons=(reason,),
            findings=findings,
            triggers=tuple(
                _trigger(findings[place], by_target[findings[place].target], bench) for place in shown
            ),
            measure="success rate of the best patch on held images",
            options=asdict(self),
            facts={"labels": float(len(findings)), "generators": float(len(findings) * len(self.betas))},
            seconds=time.perf_counter() - began,
        )

    def learn(self, bench: Bench, *, seed: int, executor: Executor) -> tuple[Learned, ...]:
        """Return the distributions alone, one for each label; what :meth:`scan` judges.

        Args:
            bench: Model and images; left as they are.
            seed: Of everything random.
            executor: Where the work is done.

        Raises:
            DataError: If there is no image of another class to search or to judge on, a label is none of the
                model's, or no patch of that size fits.
        """
        labels = tuple(range(bench.classes)) if self.labels is None else self.labels
        self._require(bench, labels)
        starts = self._starts(labels, seed, executor)
        units = [
            self._training(label, beta, where, start, seed)
            for label, (where, start) in zip(labels, starts, strict=True)
            for beta in self.betas
        ]
        found = gather(executor, units)
        step = len(self.betas)
        return tuple(
            self._learned(label, where, found[nth * step : (nth + 1) * step], bench)
            for nth, (label, (where, _)) in enumerate(zip(labels, starts, strict=True))
        )

    def _require(self, bench: Bench, labels: Sequence[int]) -> None:
        for label in labels:
            if not 0 <= label < bench.classes:
                raise DataError(f"labels: expected classes below {bench.classes}, got {label}")
            _of_others(bench.clean, label)
            _of_others(bench.held, label)
        _, height, width = bench.shape
        try:
            places_of("corners" if self.where == "found" else self.where, (height, width), self.size)
        except ValueError as error:
            raise DataError(f"images of {height} x {width}: {error}") from error

    def _starts(
        self, labels: Sequence[int], seed: int, executor: Executor
    ) -> list[tuple[Where, tuple[float, ...] | None]]:
        """Return where each label's patches go, and the patch to begin around."""
        if self.where != "found":
            return [(self.where, None) for _ in labels]
        return list(self._places(labels, seed, executor))

    def _places(
        self, labels: Sequence[int], seed: int, executor: Executor
    ) -> Iterator[tuple[Where, tuple[float, ...]]]:
        size, grid, images, steps = self.size, self.grid, self.grid_images, self.grid_steps
        units = [PlaceSearch(label, size, grid, images, steps, 0.3, seed) for label in labels]
        for arrays in gather(executor, units):
            best = int(arrays["probability"].argmax())
            top, left = arrays["places"][best].tolist()
            yield (top, left), tuple(arrays["patches"][best].flatten().tolist())

    def _training(
        self, label: int, beta: float, where: Where, start: tuple[float, ...] | None, seed: int
    ) -> PatchTraining:
        return PatchTraining(
            label,
            beta,
            self.alpha,
            self.size,
            where,
            start,
            self.steps,
            self.batch,
            self.crowd,
            self.rate,
            self.chunk,
            self.width,
            self.noise,
            self.samples,
            self.judged,
            seed,
        )

    def _learned(self, label: int, where: Where, found: Sequence[Arrays], bench: Bench) -> Learned:
        distribution = PatchDistribution(
            target=label,
            betas=self.betas,
            members=tuple(_weights(arrays) for arrays in found),
            channels=bench.shape[0],
            size=self.size,
            chunk=self.chunk,
            width=self.width,
            noise=self.noise,
            where=where,
            low=_as_array(bench.low),
            high=_as_array(bench.high),
        )
        best = max(found, key=lambda arrays: float(arrays["asr_clean"].max()))
        return Learned(
            distribution,
            best["best"],
            float(best["asr_best"]),
            tuple(float(arrays["asr"]) for arrays in found),
            tuple(float(arrays["information"]) for arrays in found),
            np.concatenate([arrays["patches"] for arrays in found]),
        )

    def _findings(self, learned: Sequence[Learned]) -> tuple[Finding, ...]:
        outstanding = _outstanding(np.array([one.asr_best for one in learned]), self.judged)
        findings = [self._finding(one, float(out)) for one, out in zip(learned, outstanding, strict=True)]
        return tuple(sorted(findings, key=lambda finding: -finding.score))

    def _finding(self, one: Learned, outstanding: float) -> Finding:
        apart, directions = diversity(one.patches)
        flagged = one.asr_best >= self.goal and max(one.asr) >= self.goal / 2 and outstanding >= self.outlier
        where = one.distribution.where
        facts = {
            "asr": one.asr_best,
            "asr_drawn": float(np.mean(one.asr)),
            "outstanding": outstanding,
            "information": float(np.mean(one.information)),
            "diversity": apart,
            "directions": directions,
            "size": float(self.size**2),
        }
        if not isinstance(where, str):
            facts |= {"row": float(where[0]), "column": float(where[1])}
        return Finding(one.distribution.target, one.asr_best, flagged=flagged, facts=facts)

    def _verdict(self, findings: Sequence[Finding], bench: Bench) -> tuple[Verdict, str]:
        size = f"{self.size} x {self.size}"
        flagged = [finding for finding in findings if finding.flagged]
        if flagged:
            told = ", ".join(f"{one.name} ({one.score:.0%})" for one in flagged)
            return (
                "backdoored",
                f"a {size} patch turns held images into the label {told}, unlike other labels",
            )
        most = findings[0]
        if most.score >= self.goal:
            return "inconclusive", (
                f"a {size} patch turns {most.score:.0%} of held images into the label {most.name}, "
                f"but nearly as many into others, or too few labels were looked at to compare"
            )
        if len(findings) < bench.classes:
            return "inconclusive", f"{len(findings)} of {bench.classes} labels were looked at, none stood out"
        if most.score >= self.goal / 2:
            return "inconclusive", (
                f"the best {size} patch turns {most.score:.0%} of held images into the label {most.name}, "
                f"too many for a clean model and too few to be sure"
            )
        return "clean", (
            f"no {size} patch was found that turns more than {most.score:.0%} of held images into one label; "
            f"larger triggers, and such as work only between the places tried, were not looked for"
        )


def _outstanding(rates: Float64[np.ndarray, " l"], images: int) -> Float64[np.ndarray, " l"]:
    """Return by how many robust deviations each rate's log-odds stand out from the other labels'."""
    if len(rates) < _FEWEST_LABELS:
        return np.zeros(len(rates))
    least = 0.5 / images
    clipped = rates.clip(least, 1 - least)
    odds = np.log(clipped / (1 - clipped))
    stand = []
    for place in range(len(odds)):
        others = np.delete(odds, place)
        middle = np.median(others)
        spread = max(_FLOOR, 1.4826 * float(np.median(np.abs(others - middle))))
        stand.append(float(odds[place] - middle) / spread)
    return np.array(stand)


def _trigger(finding: Finding, one: Learned, bench: Bench) -> FoundTrigger:
    attack = _as_attack(one, bench)
    held = bench.held.images[bench.held.labels != finding.target]
    few = held[:_PICTURES].cpu().numpy()
    return FoundTrigger(
        finding.name,
        attack,
        one.asr_best,
        float(one.distribution.size**2),
        "patch",
        _pictures(few, bench),
        _pictures(attack.stamp(few), bench),
    )


def _as_attack(one: Learned, bench: Bench) -> Attack:
    """Return the best patch as an attack; where patches go anywhere or to corners, at the last place."""
    channels, height, width = bench.shape
    size = one.distribution.size
    top, left = places_of(one.distribution.where, (height, width), size)[-1]
    mask = np.zeros((1, height, width), np.float32)
    mask[:, top : top + size, left : left + size] = 1
    pattern = np.zeros((channels, height, width), np.float32)
    low, high = _as_array(bench.low), _as_array(bench.high)
    patch = low[:, None, None] + one.best * (high - low)[:, None, None]
    pattern[:, top : top + size, left : left + size] = patch
    return Inverted(one.distribution.target, mask=mask, pattern=pattern, low=low, high=high)


def _pictures(images: Float32[np.ndarray, "m c h w"], bench: Bench) -> UInt8[np.ndarray, "m h w c"]:
    low, high = (_as_array(bound)[:, None, None] for bound in (bench.low, bench.high))
    shares = ((images - low) / (high - low)).clip(0, 1)
    return np.ascontiguousarray((shares * 255).round().astype(np.uint8).transpose(0, 2, 3, 1))


def _at_each(bench: Bench, images: Tensor, patches: Tensor, places: Sequence[Place]) -> Tensor:
    """Return the images with each patch at its place, all images for the first patch first."""
    return torch.cat(
        [_stamped(bench, images, patch[None], place) for patch, place in zip(patches, places, strict=True)]
    )


def _stamped(bench: Bench, images: Tensor, patches: Tensor, place: Place) -> Tensor:
    """Return images with patches given from 0 to 1, where the model is."""
    where = device_of(bench.model)
    laid = in_range(patches, bench.low.to(patches.device), bench.high.to(patches.device))
    return paste(images.to(where), laid.to(where), place)


def _of_others(data: Labelled, target: int) -> Tensor:
    rows: Bool[Tensor, " n"] = data.labels != target
    if not rows.any():
        raise DataError(f"images: expected some of other classes than {target}, got none")
    return data.images[rows]


def _spread(last: int, count: int) -> list[int]:
    return sorted({round(float(place)) for place in np.linspace(0, last, count)})


def _weights(arrays: Arrays) -> dict[str, np.ndarray]:
    return {name.removeprefix(_WEIGHTS): value for name, value in arrays.items() if name.startswith(_WEIGHTS)}


def _as_array(bound: Tensor) -> Float32[np.ndarray, " c"]:
    array: Float32[np.ndarray, " c"] = bound.detach().cpu().numpy().copy()
    return array


def _key(kind: str, unit: Any) -> str:
    """Return a name that all fields are in, fit for a file: those that are short as such, all as a digest."""
    fields = asdict(unit)
    digest = hashlib.sha256(repr(sorted(fields.items())).encode()).hexdigest()[:16]
    return f"trigger-distribution-{kind}-{fields['target']}-{fields.get('beta', '')}-{digest}"


def _random(key: str) -> torch.Generator:
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big"))
