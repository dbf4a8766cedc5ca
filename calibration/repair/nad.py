"""Neural attention distillation: a student is drawn to where its fine-tuned copy looks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from calibration.augmentation import Augmentation
from calibration.checkpoint import fingerprint
from calibration.recipe import Precision, Recipe
from calibration.repair.attention import Attending, last_stages, map_loss
from calibration.repair.base import Repair, RepairResult, Sitting, Supplies, copy_of
from calibration.repair.teacher import LEAST_IMAGES, fine_tuned_teacher, steps_at
from calibration.training import Hooks

__all__ = ["NeuralAttentionDistillation"]


@dataclass(frozen=True)
class NeuralAttentionDistillation(Repair):
    r"""Fine-tune a teacher, then the network anew, its attention drawn to the teacher's.

    .. math:: L = \mathrm{CE} + \sum_l \frac{\beta_l}{n p_l} \sum_i \lVert A^l_{s,i} - A^l_{t,i} \rVert_2^2

    with the attention maps A of :mod:`calibration.repair.attention` and the pixels p of the paper's networks.

    Args:
        betas: Weights of the last stages' attention, in the order of the network, on the mean over 32 x 32,
            16 x 16 and 8 x 8 pixels; as strong at other resolutions. Of fewer stages the last ones count.
        epochs: Passes of the student over the clean images.
        teacher_epochs: Passes of the teacher.
        batch: Images a step.
        rate: Learning rate of both until it first drops.
        drops: Shares of the student's training from which on the rate is a tenth of what it was before.
        teacher_drops: The same for the teacher.
        weight_decay: Factor on the squared weights, over two, in what is minimised.
        cutout: Side of the square that is blanked in each image, in pixels; 0 for none.
        precision: What the networks compute in; losses and weights are float32.

    Raises:
        ValueError: If an option is out of its range.

    References:
        Li et al., Neural Attention Distillation, ICLR 2021, arXiv 2101.05930, eq. 1 to 4 and section 4.1.

    Deviations:
        Epochs, rates and cutout are those of the authors' code, with which the published figures are
        reproduced; the paper tells of 10 epochs with a tenth of the rate after every second, and tunes
        beta for each attack. The batches are shuffled. Rather than the three groups of a wide residual
        network, the last three stages of any network are looked at, whose weights do not
        depend on the size of the images.
    """

    name: ClassVar[str] = "nad"

    betas: tuple[float, ...] = (500.0, 1000.0, 1000.0)
    epochs: int = 20
    teacher_epochs: int = 10
    batch: int = 64
    rate: float = 0.1
    drops: tuple[float, ...] = (0.1,)
    teacher_drops: tuple[float, ...] = (0.2,)
    weight_decay: float = 1e-4
    cutout: int = 2
    precision: Precision = "bfloat16"

    def __post_init__(self) -> None:
        if not self.betas or min(self.betas) < 0:
            raise ValueError(f"betas: expected one or more, each 0 or more, got {self.betas}")
        if self.teacher_epochs < 1:
            raise ValueError(f"teacher_epochs: expected 1 or more, got {self.teacher_epochs}")
        steps_at("teacher_drops", self.teacher_drops)
        self.recipe(Augmentation())

    def recipe(self, augmentation: Augmentation) -> Recipe:
        """Return how the student trains."""
        return Recipe(
            epochs=self.epochs,
            batch=self.batch,
            rate=self.rate,
            schedule=steps_at("drops", self.drops),
            weight_decay=self.weight_decay,
            augmentation=replace(augmentation, cutout=self.cutout),
            precision=self.precision,
        )

    def teacher_recipe(self, augmentation: Augmentation) -> Recipe:
        """Return how the teacher trains."""
        schedule = steps_at("teacher_drops", self.teacher_drops)
        return replace(self.recipe(augmentation), epochs=self.teacher_epochs, schedule=schedule)

    def repair(
        self, model: fx.GraphModule, supplies: Supplies, *, generator: torch.Generator, sitting: Sitting
    ) -> RepairResult:
        """Return a student of its fine-tuned copy; see :meth:`calibration.repair.base.Repair.repair`."""
        supplies.require_labels(self.name)
        supplies.require_images(self.name, LEAST_IMAGES)
        stages = last_stages(model, supplies.shape, len(self.betas), self.name)
        teacher, taught = fine_tuned_teacher(
            model, supplies, self.teacher_recipe(supplies.augmentation), generator=generator, sitting=sitting
        )
        student = copy_of(model)
        attending = Attending.of(student, teacher, stages)

        def objective(_: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
            logits, seen, wanted = attending(images)
            return functional.cross_entropy(logits, targets) + map_loss(seen, wanted, self.betas)

        identity = f"{self.name} {self.betas} {fingerprint(teacher.state_dict().values())}"
        stage = sitting.train(
            "distil",
            student,
            supplies.train,
            self.recipe(supplies.augmentation),
            generator=generator,
            hooks=Hooks(objective=objective, identity=identity),
        )
        return RepairResult(student, (taught, stage))
