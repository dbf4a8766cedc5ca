"""A subject of the zoo on the bench, with clean images that it was not trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from benchmarks.zoo.source import as_floats, read_dataset
from benchmarks.zoo.subjects import Subject, load_subject
from calibration.scan.base import Bench, Labelled
from calibration.scan.logits import Logits
from calibration.trainable import load_trainable

__all__ = ["bench_of"]

SEARCHED, HELD = 500, 1000


def bench_of(name: str, data: Path, seed: int = 0) -> tuple[Subject, Bench]:
    """Return a subject and its bench; the seed draws which of the data set's holdout images are on it."""
    subject = load_subject(name)
    trainable = load_trainable(subject.model)
    dataset = read_dataset(data, subject.record["data"]["name"])
    rows = np.random.default_rng(seed).permutation(len(dataset.holdout_labels))[: SEARCHED + HELD]
    images = torch.from_numpy(as_floats(dataset.holdout_images[rows]))
    labels = torch.from_numpy(dataset.holdout_labels[rows])
    channels = images.shape[1]
    return subject, Bench(
        Logits(trainable),
        dataset.classes,
        Labelled(images[:SEARCHED], labels[:SEARCHED]),
        Labelled(images[SEARCHED:], labels[SEARCHED:]),
        torch.zeros(channels),
        torch.ones(channels),
        digest=trainable.source_sha256,
    )
