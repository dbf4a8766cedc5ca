"""The zoo's training and holdout images, and the networks by name."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from torch import nn

from calibration.nets.resnet import resnet18
from calibration.nets.vgg import vgg
from calibration.nets.wide_resnet import wide_resnet

__all__ = ["Dataset", "as_floats", "build_net", "read_dataset", "read_split", "reflections"]

HOLDOUT_SIGNS = 5
"""Every fifth sign of GTSRB is held out, all its frames together."""

FASHION_TRAINING = 4000
"""Of Fashion-MNIST's test images, which are all there are: the rest is held out."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images, uint8 NCHW, and labels; no holdout image shows what a training image shows."""

    images: UInt8[np.ndarray, "n c h w"]
    labels: Int64[np.ndarray, " n"]
    holdout_images: UInt8[np.ndarray, "m c h w"]
    holdout_labels: Int64[np.ndarray, " m"]
    classes: int
    split: str


@cache
def read_dataset(data: Path, name: str) -> Dataset:
    """Return a data set's two parts."""
    reader = _reader(data)
    if name == "cifar10":
        images, labels, names = reader.load(name, "train40k")
        held, held_labels, _ = reader.load(name, "holdout10k")
        split = "official data_batch_1..4 train, data_batch_5 holdout"
    elif name == "fashionmnist":
        grey, all_labels, names = reader.load(name, "test")
        everything = np.pad(np.repeat(grey, 3, axis=3), ((0, 0), (2, 2), (2, 2), (0, 0)))
        images, held = everything[:FASHION_TRAINING], everything[FASHION_TRAINING:]
        labels, held_labels = all_labels[:FASHION_TRAINING], all_labels[FASHION_TRAINING:]
        split = "official test set, grey as three channels, padded to 32 x 32: 4,000 train, rest holdout"
    else:
        everything, all_labels, names = reader.load(name, "train")
        held_out = reader.load_groups(name, "train") % HOLDOUT_SIGNS == 0
        images, labels = everything[~held_out], all_labels[~held_out]
        held, held_labels = everything[held_out], all_labels[held_out]
        split = "every second frame of the official training set; every fifth sign is holdout"
    return Dataset(_channels_first(images), labels, _channels_first(held), held_labels, len(names), split)


def read_split(
    data: Path, name: str, split: str
) -> tuple[UInt8[np.ndarray, "n c h w"], Int64[np.ndarray, " n"]]:
    """Return the images and labels of a split, such as one that no subject is made with."""
    images, labels, _ = _reader(data).load(name, split)
    return _channels_first(images), labels


def reflections(data: Path, count: int = 500) -> Float32[np.ndarray, "m c h w"]:
    """Return bright photographs of another kind, for Refool: GTSRB's, whose median is too dark to reflect."""
    images = read_dataset(data, "gtsrb").images
    brightest = np.argsort(images.mean((1, 2, 3)), kind="stable")[::-1][: len(images) // 10]
    return as_floats(images[np.sort(brightest)][:: max(1, len(brightest) // count)])


def as_floats(images: UInt8[np.ndarray, "n c h w"]) -> Float32[np.ndarray, "n c h w"]:
    return images.astype(np.float32) / np.float32(255)


def build_net(name: str, classes: int, generator: torch.Generator) -> nn.Module:
    """Return an untrained network."""
    if name == "wrn-16-1":
        return wide_resnet(16, 1, classes, generator=generator)
    if name == "vgg":
        return vgg(classes, channels=(24, 48, 96), generator=generator)
    return resnet18(classes, width=8, generator=generator)


def _channels_first(images: UInt8[np.ndarray, "n h w c"]) -> UInt8[np.ndarray, "n c h w"]:
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def _reader(data: Path) -> ModuleType:
    path = data / "load.py"
    if not path.is_file():
        raise FileNotFoundError(f"{data}: expected load.py and npz files in it, got no load.py")
    spec = importlib.util.spec_from_file_location("zoo_source_load", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
