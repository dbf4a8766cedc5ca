"""Fine-pruning: take out the channels that clean images leave quiet, then fine-tune what is left."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Int64
from torch import Tensor, fx, nn

from calibration.augmentation import Augmentation
from calibration.labelled import Labelled
from calibration.prediction import as_floats, device_of
from calibration.progress import Progress
from calibration.recipe import Precision, Recipe
from calibration.repair.base import Repair, RepairResult, Sitting, StageRecord, Supplies, copy_of
from calibration.repair.channel_removal import Slot, find_slots, zero_channels
from calibration.repair.channels import Site, find_site, parts
from calibration.schedules import Steps
from calibration.training import Hooks

__all__ = ["FinePruning", "Pruning", "choose_channels"]

LEAST_IMAGES = 20
LEAST_HELD = 10
BATCH = 250


@dataclass(frozen=True, eq=False)
class Pruning:
    """Which channels are to go, and what the network gets right without them.

    Attributes:
        channels: Their numbers, quietest first.
        before: Share of the held-back images that are right with all channels.
        after: The same without these.
    """

    channels: Int64[Tensor, " d"]
    before: float
    after: float


@dataclass(frozen=True)
class FinePruning(Repair):
    r"""Prune the channels of the last convolutional stage that clean images move least, then fine-tune.

    Channels are ranked by :math:`\mathrm{mean}\,|a_c|`, over clean images and space, after the stage's
    activation. They are taken out one after the other, quietest first, until the accuracy on images that were
    held back falls by more than the budget; the last set that did not fall so far is taken out for good, and
    stays out while the rest is trained.

    Args:
        budget: How far accuracy on the held-back images may fall by pruning, as a share of the images.
        epochs: Passes over the clean images afterwards.
        batch: Images a step.
        rate: Learning rate until ``drop_at``, a tenth of it from there on.
        drop_at: Share of the training after which the rate drops.
        weight_decay: Factor on the squared weights, over two, in what is minimised.
        cutout: Side of the square that is blanked in each image, in pixels; 0 for none.
        precision: What the network computes in while it learns.

    Raises:
        ValueError: If an option is out of its range.

    References:
        Liu, Dolan-Gavitt and Garg, Fine-Pruning: Defending Against Backdooring Attacks on Deep Neural
        Networks, RAID 2018, arXiv 1805.12185, sections 3.1 and 3.3: 4 % of accuracy.

    Deviations:
        The authors' code has no rule to stop by, but numbers of channels; BackdoorBench's keeps the mask that
        broke its rule, and judges by test images. Here it is the last mask that passed, judged by images that
        nothing is fitted to. The last stage is read after its norm and activation, whether these come before
        or after its sums. The fine-tuning is that of plain fine-tuning here, so that the two compare; the
        paper leaves rate and epochs open. Activations that can be negative are ranked by their size.
    """

    name: ClassVar[str] = "fine_pruning"

    budget: float = 0.04
    epochs: int = 20
    batch: int = 64
    rate: float = 0.1
    drop_at: float = 0.1
    weight_decay: float = 1e-4
    cutout: int = 2
    precision: Precision = "bfloat16"

    def __post_init__(self) -> None:
        if not 0 <= self.budget < 1:
            raise ValueError(f"budget: expected a share in [0, 1), got {self.budget}")
        self.recipe(Augmentation())

    def recipe(self, augmentation: Augmentation) -> Recipe:
        """Return how it trains."""
        return Recipe(
            epochs=self.epochs,
            batch=self.batch,
            rate=self.rate,
            schedule=Steps((self.drop_at,)),
            weight_decay=self.weight_decay,
            augmentation=replace(augmentation, cutout=self.cutout),
            precision=self.precision,
        )

    def repair(
        self, model: fx.GraphModule, supplies: Supplies, *, generator: torch.Generator, sitting: Sitting
    ) -> RepairResult:
        """Return a pruned and fine-tuned copy; see :meth:`calibration.repair.base.Repair.repair`."""
        supplies.require_labels(self.name)
        supplies.require_images(self.name, LEAST_IMAGES, held=LEAST_HELD)
        started, student = time.perf_counter(), copy_of(model).eval()
        site = find_site(student, supplies.shape, self.name)
        slots = find_slots(student, supplies.shape, site, self.name)
        chosen = choose_channels(student, site, supplies.train, supplies.held, self.budget, sitting.quiet)
        zero_channels(student, slots, chosen.channels)
        pruned = StageRecord("prune", time.perf_counter() - started)
        stage = sitting.train(
            "fine-tune",
            student,
            supplies.train,
            self.recipe(supplies.augmentation),
            generator=generator,
            hooks=_kept_out(slots, chosen.channels),
        )
        facts = {
            "channels": float(site.channels),
            "pruned_channels": float(len(chosen.channels)),
            "held_accuracy_before_pruning": chosen.before,
            "held_accuracy_after_pruning": chosen.after,
        }
        way = "to what reads them" if slots[0].reads else "by what makes them"
        note = f"{len(chosen.channels)} of the {site.channels} channels of {site.node!r} are zero {way}"
        return RepairResult(student, (pruned, stage), facts, (note,))


def choose_channels(
    model: fx.GraphModule, site: Site, ranking: Labelled, held: Labelled, budget: float, quiet: bool = True
) -> Pruning:
    """Return the quietest channels that can go before accuracy falls by more than a budget.

    Accuracy is that of the network with the channels at zero, found for each number of them in turn from maps
    that are computed once; the first number that falls too far ends it. One channel at least is left.

    Args:
        model: The network, in evaluation mode.
        site: Where the channels are.
        ranking: Images to rank them on.
        held: Images to judge by.
        budget: How far accuracy may fall.
        quiet: Show no progress bar.
    """
    with torch.no_grad():
        trunk, rest = parts(model, site)
        order = _activity(trunk, site, ranking.images).argsort(stable=True)
        device = device_of(model)
        images = [as_floats(part.to(device)) for part in torch.split(held.images, BATCH)]
        maps = [trunk(part).contiguous() for part in images]
        labels = [part.to(device) for part in torch.split(held.labels, BATCH)]

        def right() -> int:
            answers = map(rest, images, maps)
            return sum(
                int((answer.argmax(1) == part).sum()) for answer, part in zip(answers, labels, strict=True)
            )

        before = after = right()
        lowest, count = before - budget * len(held) - 1e-6, 0
        with Progress(site.channels, "prune", quiet) as bar:
            for channel in order[:-1].to(device):
                for part in maps:
                    part.index_fill_(1, channel, 0.0)
                now = right()
                if now < lowest:
                    break
                after, count = now, count + 1
                bar.step(1)
    return Pruning(order[:count].cpu(), before / len(held), after / len(held))


def _activity(trunk: nn.Module, site: Site, images: Tensor) -> Tensor:
    total = torch.zeros(site.channels, dtype=torch.float64)
    for part in torch.split(images, BATCH):
        maps = trunk(as_floats(part.to(device_of(trunk))))
        total += site.means(maps).double().cpu() * len(part)
    return total


def _kept_out(slots: tuple[Slot, ...], channels: Tensor) -> Hooks:
    """Return hooks that zero the channels again after each step."""
    places = ", ".join(slot.parameter for slot in slots)
    return Hooks(
        after_step=lambda model: zero_channels(model, slots, channels),
        identity=f"zero of {places}: channels {sorted(channels.tolist())}",
    )
