"""Attention relation graph distillation: NAD, and how the attention of a network's stages hangs together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from calibration.augmentation import Augmentation
from calibration.checkpoint import fingerprint
from calibration.prediction import device_of
from calibration.recipe import Precision, Recipe
from calibration.repair.attention import Attending, last_stages, map_loss
from calibration.repair.base import Repair, RepairResult, Sitting, Supplies, copy_of
from calibration.repair.relations import Relations, edge_loss
from calibration.repair.teacher import LEAST_IMAGES, fine_tuned_teacher, steps_at
from calibration.training import Hooks

__all__ = ["AttentionRelationGraphDistillation"]


@dataclass(frozen=True)
class AttentionRelationGraphDistillation(Repair):
    r"""Fine-tune a teacher, then the network anew, its graph of attention drawn to the teacher's.

    .. math:: L = \mathrm{CE} + L_\mathrm{node} + \lambda_e L_\mathrm{edge} + \lambda_m L_\mathrm{embedding}

    The node loss is NAD's with other weights (:func:`calibration.repair.attention.map_loss`); the others are
    those of :mod:`calibration.repair.relations`.

    Args:
        nodes: Weights of the last stages' attention, in the order of the network, on the mean over 32 x 32,
            16 x 16 and 8 x 8 pixels; as strong at other resolutions. Of fewer stages the last ones count.
        edge: Weight of the edge loss; 0 leaves it out.
        embedding: Weight of the embedding loss; 0 leaves it out.
        width: Numbers that a node is described by, where the embedding loss weighs relations.
        learn_relations: Learn the weights of those descriptions with the student, or leave them as drawn.
        epochs: Passes of the student over the clean images.
        teacher_epochs: Passes of the teacher.
        batch: Images a step.
        rate: Learning rate of both until it first drops.
        drops: Shares of the student's training from which on the rate is a tenth of what it was before.
        teacher_drops: The same for the teacher.
        weight_decay: Factor on the squared weights, over two, in what is minimised.
        cutout: Side of the square that is blanked in each image, in pixels; 0 for none.
        clip: Largest norm of a step's gradient; None bounds none.
        precision: What the networks compute in; losses and weights are float32.

    Raises:
        ValueError: If an option is out of its range.

    References:
        Xia et al., Eliminating Backdoor Triggers for Deep Neural Networks Using Attention Relation Graph
        Distillation, IJCAI 2022, arXiv 2204.09975, section 3.

    Deviations:
        Weights and rates are those of the authors' code; the gradient's norm is bounded, without which
        victims that were trained in few epochs end at 30 to 50 % accuracy. The code's relations are drawn and
        never learned, ``learn_relations=False``, while the paper learns them. Its teacher is a WRN-40-2
        trained on the clean images from scratch; the paper's, and this one, is the network itself,
        fine-tuned. No loss depends on the size of the images, on which the code's means over pixels do; the
        last three stages of any network are looked at.
    """

    name: ClassVar[str] = "argd"

    nodes: tuple[float, ...] = (2000.0, 5000.0, 2000.0)
    edge: float = 1.0
    embedding: float = 1.0
    width: int = 128
    learn_relations: bool = True
    epochs: int = 10
    teacher_epochs: int = 10
    batch: int = 64
    rate: float = 0.1
    drops: tuple[float, ...] = (0.3, 0.6)
    teacher_drops: tuple[float, ...] = (0.3, 0.6)
    weight_decay: float = 1e-4
    cutout: int = 2
    clip: float | None = 2.0
    precision: Precision = "bfloat16"

    def __post_init__(self) -> None:
        if not self.nodes or min(self.nodes) < 0:
            raise ValueError(f"nodes: expected one or more, each 0 or more, got {self.nodes}")
        for name in ("edge", "embedding"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected 0 or more, got {getattr(self, name)}")
        for name in ("width", "teacher_epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected 1 or more, got {getattr(self, name)}")
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
            clip=self.clip,
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
        stages = last_stages(model, supplies.shape, len(self.nodes), self.name)
        teacher, taught = fine_tuned_teacher(
            model, supplies, self.teacher_recipe(supplies.augmentation), generator=generator, sitting=sitting
        )
        student = copy_of(model)
        relations = Relations(len(stages), self.width, generator).to(device_of(student))
        relations.requires_grad_(self.learn_relations)
        stage = sitting.train(
            "distil",
            nn.ModuleList([student, relations]),
            supplies.train,
            self.recipe(supplies.augmentation),
            generator=generator,
            hooks=self._hooks(Attending.of(student, teacher, stages), relations),
        )
        return RepairResult(student, (taught, stage))

    def _hooks(self, attending: Attending, relations: Relations) -> Hooks:
        def objective(_: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
            logits, seen, wanted = attending(images)
            loss = functional.cross_entropy(logits, targets) + map_loss(seen, wanted, self.nodes)
            if self.edge:
                loss = loss + self.edge * edge_loss(seen, wanted)
            if self.embedding:
                loss = loss + self.embedding * relations(seen, wanted)
            return loss

        teacher = fingerprint(attending.teacher.state_dict().values())
        weights = (self.nodes, self.edge, self.embedding, self.width, self.learn_relations)
        return Hooks(objective=objective, identity=f"{self.name} {weights} {teacher}")
