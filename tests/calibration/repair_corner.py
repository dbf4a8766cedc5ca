"""The network with a backdoor in its corner, and what there is to repair it with."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from calibration.attacks.inverted import Inverted
from calibration.attacks.measure import asr
from calibration.augmentation import NO_AUGMENTATION
from calibration.labelled import Labelled
from calibration.prediction import predict
from calibration.repair.base import Supplies, stamped
from tests.calibration.backdoored_nets import CLASSES, SIDE, TARGET, CornerNet, striped


def corner_trigger(side: int = SIDE) -> Inverted:
    """The bright corner, as a scan would give it."""
    mask = np.zeros((1, side, side), np.float32)
    mask[:, -2:, -2:] = 1
    return Inverted(TARGET, mask=mask, pattern=np.ones((1, side, side), np.float32))


def corner_net() -> fx.GraphModule:
    return fx.symbolic_trace(CornerNet())


def corner_supplies(count: int = 100, **parts: Any) -> Supplies:
    """Clean images that are not augmented, and whatever else is given."""
    train, held = (Labelled(*striped(count, seed)) for seed in (0, 1))
    given: dict[str, Any] = {"augmentation": NO_AUGMENTATION, **parts}
    return Supplies(train, held, CLASSES, (1, SIDE, SIDE), torch.zeros(1), torch.ones(1), **given)


def attacked(model: torch.nn.Module, supplies: Supplies) -> float:
    """The share of held images of other classes that the corner turns into the target."""
    trigger = corner_trigger()
    predictions = predict(model, stamped(trigger, supplies.held.images)).argmax(1)
    return asr(predictions.numpy(), supplies.held.labels.numpy(), trigger)


def seeded(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def corners_of(images: Tensor) -> Tensor:
    return images[:, :, -2:, -2:]
