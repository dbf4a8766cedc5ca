"""What few repairs need beside clean images: the training set as it was poisoned, trigger distributions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from benchmarks.repair.methods import Method
from benchmarks.repair.triggers import bench_of
from benchmarks.repair.victims import Victim
from benchmarks.zoo.source import Dataset, as_floats
from calibration.labelled import Labelled
from calibration.repair.base import Supplies
from calibration.repair.table import REPAIRS
from calibration.scan.executor import LocalExecutor
from calibration.scan.trigger_distribution import TriggerDistribution

__all__ = ["with_extras"]


def with_extras(supplies: Supplies, method: Method, victim: Victim, dataset: Dataset, seed: int) -> Supplies:
    """Return the supplies with what the method needs of the attack; the distribution is told the label only.

    Args:
        supplies: Clean images.
        method: Says what it needs.
        victim: To be repaired.
        dataset: That the victim learned from.
        seed: Of the distribution.
    """
    needs = REPAIRS[method.repair].needs
    if "poisoned set" in needs:
        supplies = replace(supplies, poisoned=_poisoned(victim, dataset))
    if "distribution" in needs:
        label = int(victim.attack.target_of(np.zeros(1, np.int64))[0])
        bench = bench_of(victim, supplies, seed)
        (learned,) = TriggerDistribution(labels=(label,)).learn(
            bench, seed=seed, executor=LocalExecutor(bench)
        )
        supplies = replace(supplies, distributions={label: learned.distribution})
    return supplies


def _poisoned(victim: Victim, dataset: Dataset) -> Labelled:
    """Return the set that the victim was trained on, the same rows poisoned."""
    record = victim.subject.record
    poisoned = victim.attack.poison(
        as_floats(dataset.images),
        dataset.labels,
        record["poison_rate"],
        np.random.default_rng(record["seed"]),
    )
    return Labelled(torch.from_numpy(poisoned.images), torch.from_numpy(poisoned.labels))
