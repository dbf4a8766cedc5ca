"""A victim on the workbench: its network, clean images to repair it with, and those to measure it on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, Int64

from benchmarks.zoo.source import Dataset, as_floats, read_dataset
from benchmarks.zoo.subjects import Subject, load_subject
from calibration.attacks.base import Attack
from calibration.augmentation import Augmentation
from calibration.labelled import Labelled
from calibration.repair.base import Supplies
from calibration.repair.workbench import split_by_class
from calibration.trainable import load_trainable
from calibration.workable import Workable, make_workable

__all__ = ["Victim", "dataset_of", "lay_out", "load_victim", "with_triggers"]

STATISTICS = 1000
HELD_SHARE = 0.1


@dataclass(frozen=True, eq=False)
class Victim:
    """A backdoored subject of the zoo, and images that it was not trained on."""

    subject: Subject
    images: Float32[np.ndarray, "n c h w"]
    labels: Int64[np.ndarray, " n"]
    classes: int

    @property
    def attack(self) -> Attack:
        """The attack that it was poisoned with."""
        assert self.subject.attack is not None
        return self.subject.attack


@lru_cache(1)
def load_victim(name: str, data: Path) -> Victim:
    """Return a victim and the whole holdout of its data set.

    Raises:
        ValueError: If there is no such subject, or it is a clean one.
    """
    subject = load_subject(name)
    if subject.attack is None:
        raise ValueError(f"victim {name!r}: expected a backdoored subject, got a clean one")
    dataset = read_dataset(data, subject.record["data"]["name"])
    return Victim(subject, as_floats(dataset.holdout_images), dataset.holdout_labels, dataset.classes)


def dataset_of(victim: Victim, data: Path) -> Dataset:
    """Return the data set that a victim learned from, clean."""
    return read_dataset(data, victim.subject.record["data"]["name"])


def lay_out(victim: Victim, data: Path, images: int, seed: int) -> tuple[Workable, Supplies]:
    """Return the network to repair and what there is to repair it with; no trigger yet.

    The clean images are the first of a random order of the victim's training images, with their true labels,
    so that fewer are among more; a tenth of each class is held back.

    Args:
        victim: To be repaired.
        data: Folder of the data sets.
        images: How many clean images; 0 for none.
        seed: Draws which.
    """
    name, dataset = victim.subject.record["data"]["name"], dataset_of(victim, data)
    if images > len(dataset.labels):
        raise ValueError(f"--images {images}: {name} has {len(dataset.labels)} training images")
    rows = np.random.default_rng(seed).permutation(len(dataset.labels))[:images]
    clean = Labelled(
        torch.from_numpy(as_floats(dataset.images[rows])), torch.from_numpy(dataset.labels[rows])
    )
    train, held = split_by_class(dataset.labels[rows], HELD_SHARE, np.random.default_rng(seed))
    learned = clean.take(torch.from_numpy(train))
    workable = make_workable(load_trainable(victim.subject.model), learned.images[:STATISTICS])
    channels, height, width = workable.shape
    supplies = Supplies(
        train=learned,
        held=clean.take(torch.from_numpy(held)),
        classes=victim.classes,
        shape=workable.shape,
        low=torch.zeros(channels),
        high=torch.ones(channels),
        augmentation=Augmentation(padding=round(min(height, width) / 8), flip=name == "cifar10"),
    )
    return workable, supplies


def with_triggers(supplies: Supplies, triggers: tuple[Attack, ...]) -> Supplies:
    """Return the same supplies and triggers."""
    return replace(supplies, triggers=triggers)
