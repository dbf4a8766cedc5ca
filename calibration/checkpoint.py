"""Where a training stands, in one safetensors file: tensors as such, everything else as JSON. No pickle."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from calibration.errors import DataError, OptionError

__all__ = ["fingerprint", "read_checkpoint", "write_checkpoint"]

FORMAT = "guard-training-1"


Optimisers = Optimizer | Sequence[Optimizer]


def write_checkpoint(
    path: Path, model: nn.Module, optimiser: Optimisers, generator: torch.Generator, state: dict[str, Any]
) -> None:
    """Write a checkpoint; a file of that name is replaced only once the new one is whole.

    Args:
        path: The file to write, ``.safetensors``.
        model: Its parameters and buffers are saved.
        optimiser: Its state for each parameter is saved; of several, that of each.
        generator: Its state is saved.
        state: Anything else, as JSON can hold it.
    """
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for name, tensor in _optimiser_tensors(optimiser):
        tensors[f"optimiser.{name}"] = tensor
    tensors["generator"] = generator.get_state()
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        save_file(plain, partial, metadata={"format": FORMAT, "state": json.dumps(state)})
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_checkpoint(
    path: Path, model: nn.Module, optimiser: Optimisers, generator: torch.Generator, expected: dict[str, Any]
) -> dict[str, Any]:
    """Put model, optimiser and generator where the checkpoint left them, and return the rest of its state.

    Nothing is changed if the checkpoint is refused.

    Args:
        path: A file from :func:`write_checkpoint`.
        model: Gets the saved parameters and buffers.
        optimiser: Gets the saved state.
        generator: Gets the saved state.
        expected: What must be in the saved state, so that one training is not continued as another.

    Raises:
        DataError: If the file is no checkpoint of this kind, or one of another model.
        OptionError: If the saved state differs from ``expected``.
    """
    state, tensors = _read(path)
    weights = {name.removeprefix("model."): part for name, part in tensors.items() if name[:6] == "model."}
    _require_fit(path, model, weights)
    for name, value in json.loads(json.dumps(expected)).items():
        if state.get(name) != value:
            raise OptionError(
                f"checkpoint {path.name}: expected {name} {value}, got {state.get(name)}; "
                "delete it to train anew"
            )
    model.load_state_dict(weights)
    _restore(optimiser, tensors)
    generator.set_state(tensors["generator"])
    return state


def fingerprint(tensors: Iterable[Tensor]) -> str:
    """Return a hash of the tensors' types, shapes and values, in their order."""
    digest = hashlib.sha256()
    for tensor in tensors:
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{plain.dtype} {tuple(plain.shape)} ".encode())
        digest.update(plain.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _require_fit(path: Path, model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Refuse weights of other names or shapes before any is copied."""
    wanted, got = (
        {name: tuple(part.shape) for name, part in held.items()} for held in (model.state_dict(), weights)
    )
    unlike = sorted(name for name in wanted | got if wanted.get(name) != got.get(name))
    if unlike:
        name = unlike[0]
        raise DataError(
            f"checkpoint {path.name}: not one of this model: expected {name} of shape {wanted.get(name)}, "
            f"got {got.get(name)}; delete it to train anew"
        )


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as stored:
            metadata = stored.metadata() or {}
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (no iterator)
    except (SafetensorError, OSError) as error:
        raise DataError(f"checkpoint {path.name}: expected a safetensors file, got: {error}") from error
    if metadata.get("format") != FORMAT:
        raise DataError(f"checkpoint {path.name}: expected format {FORMAT}, got {metadata.get('format')}")
    try:
        state: dict[str, Any] = json.loads(metadata["state"])
        torch.Generator().set_state(tensors["generator"])
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise DataError(f"checkpoint {path.name}: expected state and generator, got none: {error}") from error
    return state, tensors


def _parameters(optimiser: Optimisers) -> list[tuple[Optimizer, Tensor]]:
    several = [optimiser] if isinstance(optimiser, Optimizer) else optimiser
    return [
        (one, parameter) for one in several for group in one.param_groups for parameter in group["params"]
    ]


def _optimiser_tensors(optimiser: Optimisers) -> Iterator[tuple[str, Tensor]]:
    for position, (one, parameter) in enumerate(_parameters(optimiser)):
        for name, value in one.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                yield f"{position}.{name}", value


def _restore(optimiser: Optimisers, tensors: dict[str, Tensor]) -> None:
    parameters = _parameters(optimiser)
    for one, _ in parameters:
        one.state.clear()
    for key, saved in tensors.items():
        if key.startswith("optimiser."):
            _, position, name = key.split(".", 2)
            one, parameter = parameters[int(position)]
            alike = saved.shape == parameter.shape  # step counters are scalars, and stay where torch has them
            value = torch.empty_like(parameter).copy_(saved) if alike and saved.ndim else saved
            one.state[parameter][name] = value.detach()
