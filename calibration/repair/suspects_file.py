"""Keeps what was found suspicious, so that a repair that was broken off unlearns that and searches no more.

Seeking anew would not do: where the arithmetic does not repeat, as on a GPU, something else would be found.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from calibration.checkpoint import fingerprint, read_checkpoint, write_checkpoint
from calibration.repair.perturbations import Perturbations
from calibration.repair.suspicion import Suspects

__all__ = ["found_once"]

_TENSORS = ("keep", "add", "labels", "rates", "weights")


def found_once(
    path: Path | None, seek: Callable[[], Suspects], *, generator: torch.Generator, identity: str
) -> tuple[Suspects, float]:
    """Return what a search found, and its seconds; from the file where there is one, else it is written.

    Args:
        path: The file; None keeps nothing.
        seek: The search.
        generator: Draws everything in it; it is left as the search left it.
        identity: Says what is sought and where, in other words where something else is.

    Raises:
        OptionError: If the file is that of another search.
        DataError: If the file is damaged.
    """
    expected = {"search": identity, "generator": fingerprint([generator.get_state()])}
    if path is not None and path.exists():
        held = _Held(_shapes(path))
        state = read_checkpoint(path, held, (), generator, expected)
        return held.suspects(state["label"], state["shares"], state["images"]), state["seconds"]
    started = time.perf_counter()
    found = seek()
    seconds = time.perf_counter() - started
    if path is not None:
        told = {"label": found.label, "shares": found.shares, "images": found.images, "seconds": seconds}
        write_checkpoint(path, _Held.of(found), (), generator, {**expected, **told})
    return found, seconds


class _Held(nn.Module):
    """The tensors of what was found, as a checkpoint holds a module's."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)

    @classmethod
    def of(cls, found: Suspects) -> _Held:
        held = {field.name: getattr(found.perturbations, field.name) for field in fields(Perturbations)}
        return cls({name: held.get(name, found.weights) for name in _TENSORS})

    def suspects(self, label: int, shares: dict[str, float], images: int) -> Suspects:
        keep, add, labels, rates, weights = (self.get_buffer(name) for name in _TENSORS)
        return Suspects(label, shares, Perturbations("all", keep, add, labels, rates), weights, images)


def _shapes(path: Path) -> dict[str, Tensor]:
    """Return tensors of the shapes that a file has; nothing of one that is no checkpoint."""
    try:
        with safe_open(path, framework="pt") as stored:
            return {name: torch.empty_like(stored.get_tensor(f"model.{name}")) for name in _TENSORS}
    except (SafetensorError, OSError):
        return {}
