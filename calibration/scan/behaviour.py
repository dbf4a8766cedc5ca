"""How a trigger behaves on images that no search has seen, and where it sits."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64, UInt8
from torch import Tensor

from calibration.attacks.inverted import Inverted
from calibration.scan.base import Bench, FoundTrigger
from calibration.scan.forms import FORMS, Bounds
from calibration.scan.inversion import Aim, pool_of
from calibration.scan.state import State

__all__ = ["as_attack", "as_found", "patch_facts", "predictions", "success_by_class", "turned"]

PICTURES = 6
MOST_IMAGES = 1000


def as_attack(form: str, state: State, row: int, aim: Aim, bench: Bench) -> Inverted:
    """Return an aim's smallest trigger as an attack."""
    parts = tuple(part[row : row + 1] for part in state.best)
    arrays = FORMS[form].arrays(parts, bench.shape, Bounds(bench.low, bench.high))
    return Inverted(aim.target, aim.source, low=bench.low.numpy(), high=bench.high.numpy(), **arrays)


def as_found(attack: Inverted, aim: Aim, bench: Bench, *, form: str, asr: float, size: float) -> FoundTrigger:
    """Return a trigger with pictures of it on a few held images."""
    images = bench.held.images[pool_of(bench.held, aim)[:PICTURES]].numpy()
    return FoundTrigger(
        aim.name, attack, asr, size, form, _pictures(images, bench), _pictures(attack.stamp(images), bench)
    )


@torch.no_grad()
def predictions(bench: Bench, images: Float32[Tensor, "n c h w"]) -> Int64[np.ndarray, " n"]:
    """Return the model's classes."""
    parts = [bench.model(part).argmax(1) for part in torch.split(images, 250)]
    classes: Int64[np.ndarray, " n"] = torch.cat(parts).numpy()
    return classes


def turned(bench: Bench, attack: Inverted) -> Int64[np.ndarray, " n"]:
    """Return the model's classes of the held images with a trigger on; at most a thousand of them."""
    stamped = attack.stamp(bench.held.images[:MOST_IMAGES].numpy())
    return predictions(bench, torch.from_numpy(stamped))


def success_by_class(
    bench: Bench, attack: Inverted, classes: Int64[np.ndarray, " n"]
) -> Float64[np.ndarray, " k"]:
    """Return for each class the share of its held images that a trigger turns; NaN where it has none."""
    labels, hits = bench.held.labels[:MOST_IMAGES].numpy(), classes == attack.target_label
    rows = [labels == label for label in range(bench.classes)]
    return np.array([float(np.mean(hits[row])) if row.any() else np.nan for row in rows])


def patch_facts(attack: Inverted) -> dict[str, float]:
    """Return a patch's centre and how many pixels hold nine tenths of its mask; nothing of other triggers."""
    if attack.mask is None:
        return {}
    mask = attack.mask[0].astype(np.float64)
    total = max(float(mask.sum()), 1e-12)
    rows, columns = np.indices(mask.shape)
    ordered = np.sort(mask.ravel())[::-1].cumsum()
    return {
        "centre_row": float((rows * mask).sum() / total),
        "centre_column": float((columns * mask).sum() / total),
        "pixels_of_nine_tenths": float(np.searchsorted(ordered, 0.9 * total) + 1),
    }


def _pictures(images: Float32[np.ndarray, "m c h w"], bench: Bench) -> UInt8[np.ndarray, "m h w c"]:
    low, high = bench.low.numpy()[:, None, None], bench.high.numpy()[:, None, None]
    shares = np.clip((images - low) / np.maximum(high - low, np.float32(1e-12)), 0, 1)
    pictures: UInt8[np.ndarray, "m h w c"] = np.rint(shares * 255).astype(np.uint8).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(pictures)
