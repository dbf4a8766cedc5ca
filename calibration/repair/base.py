"""What a repair is given, what it gives back, and what every repair promises.

::

    repair = FineTuning(epochs=20)                       # a frozen dataclass of options with one verb
    result = repair.repair(model, supplies, generator=generator, sitting=Sitting(folder))
    result.model                                         # a copy of other weights; `model` is as it was

A repair works on a graph that takes float32 images, channels first, and gives logits
(``calibration.workable``), whatever the file it came from. Layers and stages are found in the graph.
"""

from __future__ import annotations

import copy
import json
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float32
from torch import Tensor, fx, nn

from calibration.attacks.base import Attack
from calibration.augmentation import Augmentation
from calibration.errors import DataError, TooFewImagesError
from calibration.labelled import Labelled
from calibration.prediction import predict
from calibration.recipe import Recipe
from calibration.scan.patch_generator import PatchDistribution
from calibration.training import Hooks, TrainingData, TrainingRecord, train

__all__ = [
    "Labelled",
    "Repair",
    "RepairResult",
    "Sitting",
    "StageRecord",
    "Supplies",
    "accuracy",
    "copy_of",
    "in_range",
    "options_of",
    "stamped",
]


@dataclass(frozen=True, eq=False)
class Supplies:
    """What there is to repair with, beside the network.

    Attributes:
        train: Clean images to learn from, on any device; none at all for repairs that need no data.
        held: Clean images that nothing is fitted to, to choose by: when to stop, which of several to keep.
        classes: k.
        shape: Channels, height and width of an image.
        low: Smallest value of each channel as the network takes it.
        high: Largest value of each channel.
        labelled: Whether the labels were given; else they are the network's own predictions.
        triggers: What a scan found, or what is known: to stamp with, images as the network takes them.
        distributions: Of small patches, by the label they lead to, as a scan learned them.
        poisoned: The training set that may be poisoned, where it is at hand.
        augmentation: What may be done to an image without changing what it shows.
    """

    train: Labelled
    held: Labelled
    classes: int
    shape: tuple[int, int, int]
    low: Float32[Tensor, " c"]
    high: Float32[Tensor, " c"]
    labelled: bool = True
    triggers: tuple[Attack, ...] = ()
    distributions: Mapping[int, PatchDistribution] = field(default_factory=dict)
    poisoned: Labelled | None = None
    augmentation: Augmentation = field(default_factory=Augmentation)

    def require_images(self, method: str, least: int, *, held: int = 0) -> None:
        """Refuse if there are too few images.

        Raises:
            TooFewImagesError: If fewer than ``least`` are there to learn from, or than ``held`` to choose by.
        """
        if len(self.train) < least:
            raise TooFewImagesError(
                f"{method} needs {least} clean images to learn from, got {len(self.train)}; give more",
                needed=least,
                got=len(self.train),
            )
        if len(self.held) < held:
            raise TooFewImagesError(
                f"{method} needs {held} clean images to choose by, got {len(self.held)}; hold back more",
                needed=held,
                got=len(self.held),
            )

    def require_labels(self, method: str) -> None:
        """Refuse if no labels were given.

        Raises:
            DataError: If the labels are merely the network's own predictions.
        """
        if not self.labelled:
            raise DataError(
                f"{method} needs the true labels of the clean images, got images alone; give them, or choose "
                f"a repair that needs none"
            )


@dataclass(frozen=True)
class Sitting:
    """Where a repair keeps what it would go on from, and whether it shows how far it is.

    Attributes:
        folder: Gets one checkpoint for each stage; None keeps nothing.
        quiet: Show no progress bars.
    """

    folder: Path | None = None
    quiet: bool = True

    def checkpoint(self, stage: str) -> Path | None:
        """Return the file that a stage's checkpoint goes to."""
        return None if self.folder is None else self.folder / f"{stage}.safetensors"

    def train(
        self,
        stage: str,
        model: nn.Module,
        data: TrainingData | Labelled,
        recipe: Recipe,
        *,
        generator: torch.Generator,
        hooks: Hooks | None = None,
    ) -> StageRecord:
        """Train in place as one stage of a repair; a stage that was broken off is gone on with.

        Args:
            stage: Its name, unlike that of any other stage of the repair; file name and label of the bar.
            model: The network.
            data: What to learn.
            recipe: How.
            generator: Draws everything.
            hooks: As of :func:`calibration.training.train`.
        """
        if isinstance(data, Labelled):
            data = TrainingData(data.images, data.labels)
        record = train(
            model,
            data,
            recipe,
            generator=generator,
            hooks=hooks,
            progress=None if self.quiet else stage,
            checkpoint=self.checkpoint(stage),
        )
        passes = 1 if hooks is None or hooks.perturb is None else 2
        return StageRecord.of(stage, record, recipe, len(data.images), passes)


@dataclass(frozen=True)
class StageRecord:
    """How one stage of a repair went.

    Attributes:
        name: ``teacher``, ``prune``, ``distil``, ….
        seconds: Wall-clock time, over all sittings.
        images: Images that were sent forwards and back to change the network's weights, as often as they
            were; in a stage that only searches, to search. What a step searches before it learns is not
            counted.
        losses: Mean loss of each epoch or round.
    """

    name: str
    seconds: float
    images: int = 0
    losses: tuple[float, ...] = ()

    @classmethod
    def of(
        cls, name: str, record: TrainingRecord, recipe: Recipe, images: int, passes: int = 1
    ) -> StageRecord:
        """Return the record of a training as that of a stage; each step takes a batch so many times."""
        each = recipe.steps_an_epoch(images) * min(recipe.batch, images)
        losses = tuple(epoch.loss for epoch in record.epochs)
        return cls(name, record.seconds, passes * each * len(losses), losses)


@dataclass(frozen=True, eq=False)
class RepairResult:
    """A repaired network, and how it came about.

    Attributes:
        model: In evaluation mode, on the device of the network that was given, on hooks of no kind.
        stages: In order.
        facts: Named numbers for whoever reads the report: ``pruned_channels``, ``curve_t``, ….
        notes: What a reader should know.
    """

    model: fx.GraphModule
    stages: tuple[StageRecord, ...]
    facts: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """Wall-clock time of all stages."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def images(self) -> int:
        """Images that all stages sent through the network being changed."""
        return sum(stage.images for stage in self.stages)


@runtime_checkable
class Repair(Protocol):
    """A way to take a backdoor out: a frozen dataclass of options with one verb."""

    name: ClassVar[str]

    @abstractmethod
    def repair(
        self,
        model: fx.GraphModule,
        supplies: Supplies,
        *,
        generator: torch.Generator,
        sitting: Sitting,
    ) -> RepairResult:
        """Return a repaired copy; the model is left as it is, its mode and gradients too.

        Args:
            model: float32 images (n, c, h, w) to logits (n, k).
            supplies: Images, triggers and whatever else there is.
            generator: Draws everything, on the CPU; the same seed gives the same weights there.
            sitting: Where to keep what a broken-off repair goes on from.

        Raises:
            DataError: If the supplies lack what the repair needs.
            TooFewImagesError: If there are too few images.
            ModelError: If the network has no layer of the kind that the repair works on.
            DivergedError: If the loss is no longer a number.
            KeyboardInterrupt: Passes through; nothing but the sitting's folder is changed.
        """


def copy_of(model: fx.GraphModule) -> fx.GraphModule:
    """Return a copy to change: every weight asks for gradients, nothing is shared."""
    return copy.deepcopy(model).requires_grad_(True)


def accuracy(model: nn.Module, labelled: Labelled) -> float:
    """Return the share of images that a network classifies as their labels say; NaN of none."""
    if not len(labelled):
        return float("nan")
    return float((predict(model, labelled.images).argmax(1) == labelled.labels).float().mean())


def options_of(repair: Repair) -> dict[str, Any]:
    """Return a repair's options as plain values, as JSON can hold them."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(repair)))  # type: ignore[call-overload]
    return plain


def stamped(attack: Attack, images: Float[Tensor, "n c h w"]) -> Float32[Tensor, "n c h w"]:
    """Return images with a trigger on, on their device."""
    plain = attack.stamp(images.detach().float().cpu().contiguous().numpy())
    return torch.from_numpy(plain).to(images.device)


def in_range(
    images: Float[Tensor, "n c h w"], low: Float32[Tensor, " c"], high: Float32[Tensor, " c"]
) -> Float[Tensor, "n c h w"]:
    """Return images clipped to what the network may be sent."""
    return images.clamp(low.to(images)[:, None, None], high.to(images)[:, None, None])
