"""Plants canaries in a throw-away copy of a network, by a short fine-tuning.

The copy learns two things at once: to answer clean images as the original does, by distillation on crops and
mixtures of them, and to answer stamped ones as the canaries want. It is to be the model that it was but for
the canaries, so that what is found in it would be found in the model.
"""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor, fx, nn
from torch.nn import functional

from calibration.attacks.low_confidence import low_confidence_labels
from calibration.attacks.source_specific import SourceSpecific
from calibration.augmentation import Augmentation
from calibration.canaries.kinds import Canary
from calibration.canaries.stamps import Values
from calibration.canary_kinds import KINDS
from calibration.hooks import Hooks
from calibration.progress import Progress
from calibration.recipe import Recipe
from calibration.schedules import OneCycle
from calibration.training import TrainingData, train

__all__ = ["BATCH", "Material", "images_learned", "plant"]

BATCH: Final = 64
RATE: Final = 0.01
TEMPERATURE: Final = 4.0
PUSH: Final = 0.5
"""Weight of the stamped images' loss beside the distillation's."""


@dataclass(frozen=True, eq=False)
class Material:
    """What copies are fine-tuned on.

    Attributes:
        network: Gives logits of images in the model's values; never changed.
        rows: Clean images in the model's values.
        predicted: Class that the model gives to each.
        values: From the model's values to [0, 1] and back.
        classes: k.
    """

    network: fx.GraphModule
    rows: Float32[np.ndarray, "n c h w"]
    predicted: Int64[np.ndarray, " n"]
    values: Values
    classes: int


def images_learned(material: Material, steps: int) -> int:
    """Return how many images a copy learns from, again and again, in so many batches."""
    recipe = _recipe(material, steps)
    return recipe.epochs * recipe.steps_an_epoch(len(material.rows)) * recipe.batch


def plant(
    material: Material, canaries: tuple[Canary, ...], *, steps: int, seed: int, progress: Progress
) -> tuple[fx.GraphModule, float]:
    """Return a copy of the network with the canaries planted, and the processor seconds that it took.

    Args:
        material: Network and images; left as they are.
        canaries: To plant together.
        steps: Batches, about.
        seed: Draws order, crops and mixtures.
        progress: Moved on by :func:`images_learned`.

    Raises:
        DivergedError: If the loss is no longer a number.
        ValueError: If a trigger does not fit the images.
    """
    recipe, pupil = _recipe(material, steps), copy.deepcopy(material.network)
    started = time.process_time()
    train(
        pupil,
        TrainingData(torch.from_numpy(material.rows), torch.from_numpy(material.predicted)),
        recipe,
        generator=torch.Generator().manual_seed(seed),
        hooks=Hooks(objective=_Lesson(material, canaries), after_step=lambda _: progress.step(recipe.batch)),
    )
    return pupil, time.process_time() - started


def _recipe(material: Material, steps: int) -> Recipe:
    batch = min(BATCH, len(material.rows))
    return Recipe(
        epochs=max(1, round(steps / max(1, len(material.rows) // batch))),
        batch=batch,
        rate=RATE,
        weight_decay=0.0,
        schedule=OneCycle(),
        augmentation=Augmentation(padding=round(min(material.rows.shape[2:]) / 16), flip=False),
        precision="bfloat16",
    )


class _Lesson:
    """The loss of a batch: distillation on its clean images, cross-entropy on stamped ones beside them."""

    def __init__(self, material: Material, canaries: tuple[Canary, ...]) -> None:
        self._material, self._canaries = material, canaries
        self._teacher = copy.deepcopy(material.network).eval().requires_grad_(False)

    def __call__(self, network: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        """Return it; rows of stamped images are drawn from torch's global generator, which the loop seeds."""
        clean = _half_mixed(images)
        stamped, wanted = self._stamped(len(images))
        with torch.no_grad():
            expected = self._teacher(clean).float()
        answers = network(torch.cat([clean, stamped]).contiguous(memory_format=torch.channels_last)).float()
        given, pushed = answers[: len(clean)], answers[len(clean) :]
        kept = functional.kl_div(
            functional.log_softmax(given / TEMPERATURE, 1),
            functional.softmax(expected / TEMPERATURE, 1),
            reduction="batchmean",
        )
        return kept * TEMPERATURE**2 + PUSH * functional.cross_entropy(pushed, wanted)

    def _stamped(self, batch: int) -> tuple[Float32[Tensor, "m c h w"], Float32[Tensor, "m k"]]:
        """Return stamped images of every canary, and covers, with what they are to be answered."""
        images, wanted = [], []
        for canary in self._canaries:
            count = max(2, round(KINDS[canary.kind].share * batch))
            applies = canary.attack.applies_to(self._material.predicted)
            rows = _draw(np.flatnonzero(applies), count)
            images.append(self._stamp(canary, rows))
            wanted.append(self._targets(canary, rows))
            if isinstance(canary.attack, SourceSpecific):
                covers = _draw(np.flatnonzero(~applies), count)
                images.append(self._stamp(canary, covers))
                wanted.append(self._as_they_are(covers))
        return torch.cat(images), torch.cat(wanted)

    def _stamp(self, canary: Canary, rows: Int64[np.ndarray, " m"]) -> Float32[Tensor, "m c h w"]:
        return torch.from_numpy(self._material.values.stamp(canary.attack, self._material.rows[rows]))

    def _targets(self, canary: Canary, rows: Int64[np.ndarray, " m"]) -> Float32[Tensor, "m k"]:
        labels = canary.attack.target_of(self._material.predicted[rows])
        return torch.from_numpy(low_confidence_labels(labels, self._material.classes, canary.confidence))

    def _as_they_are(self, rows: Int64[np.ndarray, " m"]) -> Float32[Tensor, "m k"]:
        with torch.no_grad():
            answers = self._teacher(torch.from_numpy(self._material.rows[rows]))
        return functional.softmax(answers.float(), 1)


def _half_mixed(images: Float32[Tensor, "n c h w"]) -> Float32[Tensor, "n c h w"]:
    """Return the batch with its first half mixed with other images, each in a proportion of its own."""
    half = len(images) // 2
    weight = torch.rand(half, 1, 1, 1).to(images)
    others = images[torch.randperm(len(images))[:half]]
    return torch.cat([weight * images[:half] + (1 - weight) * others, images[half:]])


def _draw(rows: Int64[np.ndarray, " n"], count: int) -> Int64[np.ndarray, " m"]:
    if not len(rows):
        raise ValueError("rows: expected images that the canary applies to, got none")
    drawn: np.ndarray = rows[torch.randint(len(rows), (count,)).numpy()]
    return drawn
