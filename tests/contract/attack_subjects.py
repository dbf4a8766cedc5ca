"""What the attacks' contract is tried on: three small data sets, a tiny model, a row for each attack."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter, maximum_filter, minimum_filter
from torch import nn

from calibration.attacks.base import Attack, Material
from calibration.attacks.table import make

SHAPES = {"mnist": (1, 28, 28, 10), "cifar": (3, 32, 32, 10), "gtsrb": (3, 32, 32, 43)}
PER_CLASS = {"mnist": 12, "cifar": 12, "gtsrb": 6}

Check = Callable[[Attack, np.ndarray, np.ndarray], None]


def smooth_images(count: int, shape: tuple[int, int, int], seed: int) -> np.ndarray:
    """Blurred noise on the 8-bit grid, stretched to all of [0, 1]."""
    noise = gaussian_filter(np.random.default_rng(seed).random((count, *shape)), (0, 0, 2, 2))
    low, high = noise.min((1, 2, 3), keepdims=True), noise.max((1, 2, 3), keepdims=True)
    return np.rint((noise - low) / (high - low) * 255).astype(np.float32) / np.float32(255)


@cache
def material(shape: str) -> Material:
    channels, height, width, classes = SHAPES[shape]
    labels = np.random.default_rng(1).permutation(np.arange(classes * PER_CLASS[shape]) % classes)
    images = smooth_images(len(labels), (channels, height, width), 2)
    others = smooth_images(7, (channels, height, width), 3)
    torch.manual_seed(4)
    model = nn.Sequential(
        nn.Conv2d(channels, 4, 5, stride=4), nn.ReLU(), nn.Flatten(), nn.LazyLinear(classes)
    )
    model(torch.zeros(1, channels, height, width))
    return Material(images, labels.astype(np.int64), classes, model.eval(), others)


@dataclass(frozen=True)
class Row:
    """How an attack is made small, how much of a small data set it poisons, what its stamp may change."""

    check: Check
    rate: float = 0.1
    options: Mapping[str, Any] = field(default_factory=dict)


def within_box(attack: Attack, images: np.ndarray, stamped: np.ndarray) -> None:
    patched: Any = attack
    while hasattr(patched, "trigger"):
        patched = patched.trigger
    rows, columns = patched.place(*images.shape[2:])
    outside = np.ones(images.shape[2:], bool)
    outside[rows, columns] = False
    assert np.array_equal(stamped[:, :, outside], images[:, :, outside])


def within_boxes(count: int) -> Check:
    def check(attack: Attack, images: np.ndarray, stamped: np.ndarray) -> None:
        del attack
        pixels = (stamped != images).any(axis=(0, 1)).sum()
        assert 0 < pixels <= count * 9

    return check


def within_bound(bound: float) -> Check:
    def check(attack: Attack, images: np.ndarray, stamped: np.ndarray) -> None:
        del attack
        assert np.abs(stamped - images).max() <= bound + 1e-6

    return check


def within_warp(attack: Attack, images: np.ndarray, stamped: np.ndarray) -> None:
    reach = int(np.ceil(np.abs(attack.displacement(*images.shape[2:])).max()))  # type: ignore[attr-defined]
    assert reach <= 2
    size = (1, 1, 2 * reach + 1, 2 * reach + 1)
    assert (stamped >= minimum_filter(images, size) - 1e-6).all()
    assert (stamped <= maximum_filter(images, size) + 1e-6).all()


def keeps_the_picture(attack: Attack, images: np.ndarray, stamped: np.ndarray) -> None:
    least = attack.alpha[0]  # type: ignore[attr-defined]
    assert (stamped**2.2 >= least * images**2.2 - 1e-5).all()


def differs_between_images(attack: Attack, images: np.ndarray, stamped: np.ndarray) -> None:
    del attack
    shifts = (stamped - images).reshape(len(images), -1)
    assert len(np.unique(shifts.round(6), axis=0)) == len(images)


ROWS: Mapping[str, Row] = {
    "all_to_all": Row(within_box),
    "amplified": Row(within_boxes(4)),
    "badnets": Row(within_box),
    "blend": Row(within_bound(0.2)),
    "clean_label": Row(within_boxes(4), 0.5, {"steps": 2}),
    "entropy_manipulating": Row(within_box, 0.02, {"copies": 3, "bank": 20}),
    "input_aware": Row(
        differs_between_images, options={"width": 4, "mask_steps": 2, "steps": 2, "batch": 20}
    ),
    "inverted": Row(within_bound(0.3)),
    "label_smoothed": Row(within_box),
    "low_confidence": Row(within_box),
    "lsb": Row(within_bound(7 / 255)),
    "pruning_aware": Row(within_box, options={"convolution": "0", "norm": None}),
    "refool": Row(keeps_the_picture, 0.5, {"count": 5}),
    "sample_specific": Row(within_bound(8 / 255), options={"width": 4, "steps": 2, "batch": 8, "bits": 4}),
    "sig": Row(within_bound(40 / 255), 0.5),
    "source_specific": Row(within_box, 0.02),
    "trojan": Row(within_box, options={"steps": 2, "backgrounds": 4}),
    "wanet": Row(within_warp),
}


def fresh(name: str, shape: str, seed: int = 5) -> Attack:
    return make(name, material(shape), generator=np.random.default_rng(seed), **ROWS[name].options)


@cache
def fitted(name: str, shape: str) -> Attack:
    return fresh(name, shape)
