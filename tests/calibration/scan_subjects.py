"""A bench with a network made by hand, for tests of scans."""

import torch

from calibration.scan.base import Bench, Labelled
from tests.calibration.backdoored_nets import CLASSES, CornerNet, striped


def corner_bench(gain: float = 40.0, count: int = 60, digest: str = "corner") -> Bench:
    """Return a bench whose model has a backdoor in a bright corner; none with a gain of 0."""
    clean, held = (Labelled(*striped(count, seed)) for seed in (0, 1))
    return Bench(CornerNet(gain), CLASSES, clean, held, torch.zeros(1), torch.ones(1), digest=digest)
