"""Knowledge distillation: a fresh network learns from the old one's answers on clean images alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Float32
from torch import Tensor, fx, nn
from torch.nn import functional

from calibration.augmentation import Augmentation
from calibration.checkpoint import fingerprint
from calibration.hooks import Hooks, Objective
from calibration.prediction import predict
from calibration.recipe import Precision, Recipe
from calibration.repair.base import Labelled, Repair, RepairResult, Sitting, StageRecord, Supplies, copy_of
from calibration.repair.fresh import fresh_copy
from calibration.schedules import OneCycle

__all__ = ["Distillation", "distilling", "divergence", "without_disputed"]

LEAST_IMAGES = 20


@dataclass(frozen=True)
class Distillation(Repair):
    """Teach a fresh network of the same architecture what the old one says on clean images.

    A backdoor that clean images do not wake is not taught. The second step needs the training set that may
    be poisoned: images on which teacher and student disagree are dropped, and the student is fine-tuned on
    the others with the labels they have there. Without that set there is no second step.

    Args:
        epochs: Passes over the clean images; fewer images want more of them.
        temperature: T, that logits are divided by.
        rate: Highest learning rate of the distillation; one cycle.
        batch: Images a step.
        weight_decay: Factor on the squared weights, over two, in what is minimised, in both steps.
        start: What the student starts as: ``fresh`` weights, or the ``victim``'s own.
        fine_tune_epochs: Passes over what is left of the training set; 0 leaves the second step out.
        fine_tune_rate: Highest learning rate of the second step; one cycle.
        precision: What the networks compute in while the student learns.

    Raises:
        ValueError: If an option is out of its range.

    References:
        Yoshida and Fujino, Disabling Backdoor and Identifying Poison Data by using Knowledge Distillation in
        Backdoor Attacks on Deep Neural Networks, AISec 2020, section 3. Hinton, Vinyals and Dean, Distilling
        the Knowledge in a Neural Network, arXiv 1503.02531, for the loss.

    Deviations:
        Temperature, rates and length are ours: the paper's could not be had. The clean images are augmented
        as the network's own were, anew each time; teacher and student see the same.
    """

    name: ClassVar[str] = "distillation"

    epochs: int = 60
    temperature: float = 4.0
    rate: float = 0.1
    batch: int = 64
    weight_decay: float = 5e-4
    start: Literal["fresh", "victim"] = "fresh"
    fine_tune_epochs: int = 10
    fine_tune_rate: float = 0.02
    precision: Precision = "bfloat16"

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature: expected more than 0, got {self.temperature}")
        if self.start not in ("fresh", "victim"):
            raise ValueError(f"start: expected fresh or victim, got {self.start!r}")
        for name in ("fine_tune_epochs", "fine_tune_rate"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected 0 or more, got {getattr(self, name)}")
        self.recipe(Augmentation())

    def recipe(self, augmentation: Augmentation) -> Recipe:
        """Return how the student learns from the teacher."""
        return self._cycle(self.epochs, self.rate, augmentation)

    def repair(
        self, model: fx.GraphModule, supplies: Supplies, *, generator: torch.Generator, sitting: Sitting
    ) -> RepairResult:
        """Return the student; see :meth:`calibration.repair.base.Repair.repair`."""
        supplies.require_images(self.name, LEAST_IMAGES)
        teacher = copy_of(model).eval().requires_grad_(False)
        student = fresh_copy(model, generator) if self.start == "fresh" else copy_of(model)
        hooks = Hooks(
            objective=distilling(teacher, self.temperature),
            identity=f"{self.name} T {self.temperature} of {fingerprint(teacher.state_dict().values())}",
        )
        recipe = self.recipe(supplies.augmentation)
        first = sitting.train("distil", student, supplies.train, recipe, generator=generator, hooks=hooks)
        if supplies.poisoned is None or not self.fine_tune_epochs:
            return RepairResult(student, (first,))
        return self._fine_tuned(teacher, student, first, supplies, generator=generator, sitting=sitting)

    def _fine_tuned(
        self,
        teacher: nn.Module,
        student: fx.GraphModule,
        first: StageRecord,
        supplies: Supplies,
        *,
        generator: torch.Generator,
        sitting: Sitting,
    ) -> RepairResult:
        assert supplies.poisoned is not None
        kept = without_disputed(teacher, student, supplies.poisoned)
        dropped = len(supplies.poisoned) - len(kept)
        facts = {"training_images": float(len(supplies.poisoned)), "disputed_images": float(dropped)}
        if not len(kept):
            told = "teacher and student agree on no image of the training set: the student was not fine-tuned"
            return RepairResult(student, (first,), facts, (told,))
        recipe = self._cycle(self.fine_tune_epochs, self.fine_tune_rate, supplies.augmentation)
        second = sitting.train("fine-tune", student, kept, recipe, generator=generator)
        return RepairResult(student, (first, second), facts)

    def _cycle(self, epochs: int, rate: float, augmentation: Augmentation) -> Recipe:
        return Recipe(
            epochs=epochs,
            batch=self.batch,
            rate=rate,
            schedule=OneCycle(),
            weight_decay=self.weight_decay,
            augmentation=augmentation,
            precision=self.precision,
        )


def divergence(
    student: Float[Tensor, "n k"], teacher: Float[Tensor, "n k"], temperature: float
) -> Float32[Tensor, ""]:
    r"""Return how far a student's answers are from a teacher's, softened.

    .. math:: \frac{T^2}{n} \sum_{i=1}^{n} \mathrm{KL}\bigl(\mathrm{softmax}(t_i / T) \,\|\,
        \mathrm{softmax}(s_i / T)\bigr)

    Args:
        student: Logits s.
        teacher: Logits t.
        temperature: T. Its square keeps the gradients' size as T changes.

    Examples:
        >>> float(divergence(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]]), 2.0))
        0.0
    """
    softened, said = (
        functional.log_softmax(logits.float() / temperature, 1) for logits in (teacher, student)
    )
    loss: Tensor = temperature**2 * functional.kl_div(said, softened, reduction="batchmean", log_target=True)
    return loss


def distilling(teacher: nn.Module, temperature: float) -> Objective:
    """Return the loss of a student against a teacher on the same images; labels are not looked at."""

    def objective(student: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        del targets
        with torch.no_grad():
            wanted = teacher(images)
        return divergence(student(images), wanted, temperature)

    return objective


def without_disputed(teacher: nn.Module, student: nn.Module, labelled: Labelled) -> Labelled:
    """Return the images that both networks take for the same class, with the labels they have."""
    answers = [predict(network, labelled.images).argmax(1) for network in (teacher, student)]
    return labelled.take(answers[0] == answers[1])
