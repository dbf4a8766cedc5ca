"""Unlearn what moves the network most, and keep what it knew; neither a trigger nor labels are needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from calibration.attacks.base import Attack
from calibration.augmentation import Augmentation
from calibration.checkpoint import fingerprint
from calibration.errors import ModelError
from calibration.hooks import Hooks
from calibration.prediction import device_of
from calibration.recipe import Precision, Recipe
from calibration.repair.base import Repair, RepairResult, Sitting, StageRecord, Supplies, copy_of
from calibration.repair.perturbations import Range
from calibration.repair.stamping import Stamp, fingerprint_of, hand_out, stamps_of, with_grids
from calibration.repair.suspects_file import found_once
from calibration.repair.suspicion import Suspects, Suspicion, both, suspect
from calibration.schedules import OneCycle

__all__ = ["GuidedUnlearning", "divergence"]

LEAST_IMAGES = 20
LEAST_SIDE = 4


@dataclass(frozen=True)
class GuidedUnlearning(Repair):
    r"""Seek the labels that weak perturbations lead to best, and unlearn those by self-distillation.

    .. math:: L = \frac1n \sum_i D(t(x_i) \,\|\, s(x_i)) + \frac{w}{m} \sum_j D(t(x_j) \,\|\, s(T_{p_j}(x_j)))

    with the network as it was given, t, its copy s, clean images x, perturbations :math:`T_p` drawn by how
    much better they reach their label than others of their kind reach another (``suspicion.py``), and the
    divergence D of their answers. The copy is taught by the network's own answers on clean images, so that
    2,500 images cost little accuracy; as it never sees a perturbed image itself, it teaches no backdoor.
    The gradient's norm is bounded: the first perturbed images are answered with such certainty that their
    gradients would tear through all that the network knows.

    Triggers that a scan found, where they are given, are put on some more images, as they are and in grids of
    four and nine: it is they that this network is known to answer, and what was only weakened shows under
    many copies. They take nothing from what was sought, for a scan may have found the wrong ones, but come
    to the sum as a third term of the same form.

    Args:
        rounds: Times that it is sought and unlearned: what moves most may hide what moves less.
        epochs: Passes over the clean images in each round.
        batch: Clean images a step.
        perturbed: Perturbed images a step, as a share of the clean ones.
        weight: w.
        rate: Learning rate at its highest.
        clip: Largest norm of a step's gradient.
        weight_decay: Factor on the squared weights, over two, in what is minimised.
        cutout: Side of the square that is blanked in each image, in pixels; 0 for none.
        noise: Norm of noise that is sought, as in :class:`~calibration.repair.suspicion.Suspicion`.
        shade: Norm of shades that are sought.
        wave: Amplitude of waves that are tried.
        patch: Side of patches that are sought, as a share of the image's shorter side.
        floor: Share of the unlearning that goes to what moves the network at all, to every label by how well
            it is reached; the rest goes by what a label gains over the runner-up.
        search_steps: Steps of each search.
        given: Images a step that carry a trigger, where any was given, as a share of the perturbed ones; and
            what they weigh beside those.
        precision: What the network computes in.

    Raises:
        ValueError: If an option is out of its range.

    References:
        Our own. The parts: universal perturbations that unlearning is aimed at, Zeng et al., I-BAU, ICLR
        2022; unlearning of an inverted trigger, Wang et al., Neural Cleanse, IEEE S&P 2019; self-distillation
        on clean data, Li et al., NAD, ICLR 2021.
    """

    name: ClassVar[str] = "guided_unlearning"

    rounds: int = 1
    epochs: int = 12
    batch: int = 64
    perturbed: float = 0.5
    weight: float = 1.0
    rate: float = 0.05
    clip: float = 0.5
    weight_decay: float = 1e-4
    cutout: int = 2
    noise: float = 0.5
    shade: float = 2.0
    wave: float = 0.15
    patch: float = 0.125
    floor: float = 0.4
    search_steps: int = 25
    given: float = 0.5
    precision: Precision = "bfloat16"

    def __post_init__(self) -> None:
        self.recipe(Augmentation())
        for name in ("noise", "shade", "wave", "patch", "weight"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: expected more than 0, got {getattr(self, name)}")
        if not 0 < self.perturbed <= 1:
            raise ValueError(f"perturbed: expected a share in (0, 1], got {self.perturbed}")
        for name in ("floor", "given"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected a share in [0, 1], got {getattr(self, name)}")
        if self.patch > 1:
            raise ValueError(f"patch: expected a share of the image's side, got {self.patch}")
        if self.rounds < 1:
            raise ValueError(f"rounds: expected 1 or more, got {self.rounds}")
        if self.search_steps < 1:
            raise ValueError(f"search_steps: expected 1 or more, got {self.search_steps}")

    def recipe(self, augmentation: Augmentation) -> Recipe:
        """Return how it trains."""
        return Recipe(
            epochs=self.epochs,
            batch=self.batch,
            rate=self.rate,
            schedule=OneCycle(rising=0.1),
            weight_decay=self.weight_decay,
            augmentation=replace(augmentation, cutout=self.cutout),
            precision=self.precision,
            clip=self.clip,
        )

    def perturbed_of(self, images: int) -> int:
        """Return how many perturbed images go with so many clean ones."""
        return max(1, int(self.perturbed * images))

    def stamped_of(self, images: int) -> int:
        """Return how many images with a trigger that was given go with so many clean ones."""
        return max(1, round(self.given * self.perturbed_of(images)))

    def repair(
        self, model: fx.GraphModule, supplies: Supplies, *, generator: torch.Generator, sitting: Sitting
    ) -> RepairResult:
        """Return a copy without its backdoor; see :meth:`calibration.repair.base.Repair.repair`.

        Raises:
            ModelError: If images are too small for waves.
        """
        supplies.require_images(self.name, LEAST_IMAGES)
        if min(supplies.shape[1:]) < LEAST_SIDE:
            raise ModelError(
                f"{self.name} needs images of at least {LEAST_SIDE} pixels a side, got {supplies.shape[1]} x "
                f"{supplies.shape[2]}; choose another repair"
            )
        teacher = _fixed(model)
        student, train = copy_of(model), supplies.train.to(device_of(model))
        triggers = with_grids(supplies.triggers, train.images) if self.given else []
        stamps = _Stamps.of(triggers, train.images)
        ends, found = Range(supplies.low, supplies.high), None
        stages: list[StageRecord] = []
        facts: dict[str, float] = {"triggers": float(len(supplies.triggers) if self.given else 0)}
        for number in range(1, self.rounds + 1):
            new, seconds = self._seek(
                number, student, train.images, ends, supplies.classes, generator, sitting
            )
            found = new if found is None else both(found, new)
            stages.append(StageRecord(f"suspect {number}", seconds, new.images))
            facts |= {f"suspect_label_{number}": float(new.label)}
            facts |= {f"share_{family}_{number}": share for family, share in new.shares.items()}
            unlearning = sitting.train(
                f"unlearn {number}",
                student,
                train,
                self.recipe(supplies.augmentation),
                generator=generator,
                hooks=_Lesson(self, teacher, found, ends, stamps).hooks(),
            )
            each = min(self.batch, len(train))
            more = self.stamped_of(each) if triggers else 0
            sent = unlearning.images // each * (each + self.perturbed_of(each) + more)
            stages.append(replace(unlearning, images=sent))
        return RepairResult(student, tuple(stages), facts)

    def _seek(
        self,
        number: int,
        student: fx.GraphModule,
        images: Tensor,
        ends: Range,
        classes: int,
        generator: torch.Generator,
        sitting: Sitting,
    ) -> tuple[Suspects, float]:
        """Return what moves the network as it is by now, and the seconds it took to find."""
        seen = _fixed(student)
        wanted = Suspicion(
            self.noise, self.shade, self.wave, self.patch, steps=self.search_steps, floor=self.floor
        )
        digest = fingerprint([*seen.state_dict().values(), images, ends.low, ends.high])

        def seek() -> Suspects:
            return suspect(
                seen,
                images,
                ends,
                classes,
                wanted,
                generator=generator,
                precision=self.precision,
                quiet=sitting.quiet,
            )

        return found_once(
            sitting.checkpoint(f"suspect {number}"),
            seek,
            generator=generator,
            identity=f"{wanted}, {self.precision}, {classes} classes, {digest}",
        )


@dataclass(frozen=True)
class _Stamps:
    """Triggers that were given, and what tells them from others; none and nothing where none were."""

    each: Sequence[Stamp]
    identity: str

    @classmethod
    def of(cls, triggers: Sequence[Attack], images: Tensor) -> _Stamps:
        return cls(
            stamps_of(triggers, images), f", triggers {fingerprint_of(triggers, images)}" if triggers else ""
        )


class _Lesson:
    """What is learned at a step: the teacher's answers on clean images, on those and on perturbed ones."""

    def __init__(
        self, options: GuidedUnlearning, teacher: nn.Module, found: Suspects, ends: Range, stamps: _Stamps
    ) -> None:
        self.options, self.teacher, self.found, self.ends = options, teacher, found, ends
        self.stamps = stamps

    def hooks(self) -> Hooks:
        held = self.found.perturbations
        ends = (self.ends.low, self.ends.high)
        seen = [*self.teacher.state_dict().values(), *ends, held.keep, held.add, self.found.weights]
        identity = f"guided unlearning, {asdict(self.options)}, {fingerprint(seen)}{self.stamps.identity}"
        return Hooks(finish=self._perturb, objective=self._loss, identity=identity)

    def _perturb(self, images: Tensor, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Return a batch, and after it some of its images with a perturbation on."""
        del rows
        count = self.options.perturbed_of(len(images))
        which = torch.multinomial(self.found.weights, count, replacement=True, generator=generator)
        units = self.ends.unit(images[:count])
        parts = [images, self.ends.full(self.found.perturbations.put(units, which))]
        if self.stamps.each:
            carrying = torch.arange(self.options.stamped_of(len(images)))
            first = int(torch.randint(len(self.stamps.each), (), generator=generator))
            stamped = hand_out(images[: len(carrying)], carrying, self.stamps.each, first)
            parts.append(stamped.to(images.dtype))
        return torch.cat(parts)

    def _loss(self, student: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        clean = len(targets)
        with torch.no_grad():
            taught = self.teacher(images[:clean]).float()
        answers = student(images).float()
        count = self.options.perturbed_of(clean)
        sought, stamped = answers[clean : clean + count], answers[clean + count :]
        unlearned = divergence(taught[:count], sought)
        if len(stamped):
            unlearned = unlearned + self.options.given * divergence(taught[: len(stamped)], stamped)
        return divergence(taught, answers[:clean]) + self.options.weight * unlearned


def _fixed(model: fx.GraphModule) -> fx.GraphModule:
    """Return a copy as it is, to be asked and not changed."""
    fixed = copy_of(model).eval().requires_grad_(False)
    fixed.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return fixed


def divergence(taught: Tensor, answers: Tensor) -> Tensor:
    r"""Return the mean Kullback-Leibler divergence of answers from what was taught, in nats.

    .. math:: D(p \| q) = \sum_c p_c (\log p_c - \log q_c)

    Args:
        taught: Logits of p, (n, k).
        answers: Logits of q, (n, k).
    """
    return functional.kl_div(
        functional.log_softmax(answers, 1),
        functional.log_softmax(taught, 1),
        reduction="batchmean",
        log_target=True,
    )
