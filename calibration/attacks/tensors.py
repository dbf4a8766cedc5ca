"""Between the arrays that attacks are made of and the torch modules that some are fitted with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn

from calibration.attacks.base import Images, Material

__all__ = [
    "arrays_of",
    "as_images",
    "batches",
    "capture_input",
    "device_of",
    "frozen",
    "last_linear",
    "load_arrays",
    "require_model",
    "require_weights",
    "torch_generator",
]


def torch_generator(generator: np.random.Generator) -> torch.Generator:
    """Return a torch generator on the CPU that is seeded by the next draw of a numpy one."""
    return torch.Generator().manual_seed(int(generator.integers(2**63)))


def require_model(material: Material, name: str) -> nn.Module:
    """Return the material's model.

    Raises:
        ValueError: If it has none, or something that is no module.
    """
    if not isinstance(material.model, nn.Module):
        raise ValueError(f"model: {name} is fitted on a clean, trained torch module, got {material.model!r}")
    return material.model


def device_of(model: nn.Module) -> torch.device:
    """Return where the model's first parameter lies; the CPU if it has none."""
    first = next(model.parameters(), None)
    return torch.device("cpu") if first is None else first.device


@contextmanager
def frozen(model: nn.Module) -> Iterator[nn.Module]:
    """Lend the model in evaluation mode with no gradients for its parameters; afterwards all is as before."""
    modes = {module: module.training for module in model.modules()}
    wanted = {parameter: parameter.requires_grad for parameter in model.parameters()}
    model.eval().requires_grad_(False)
    try:
        yield model
    finally:
        for module, training in modes.items():
            module.training = training
        for parameter, requires_grad in wanted.items():
            parameter.requires_grad_(requires_grad)


def last_linear(model: nn.Module, name: str) -> nn.Linear:
    """Return the model's last linear layer; its input is the last hidden layer.

    Raises:
        ValueError: If the model has none.
    """
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise ValueError(f"model: {name} looks for the last linear layer, and the model has none")
    return layers[-1]


@contextmanager
def capture_input(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Lend a list that always holds the layer's latest input, alone."""
    latest: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        latest[:] = [inputs[0]]

    handle = layer.register_forward_pre_hook(keep)
    try:
        yield latest
    finally:
        handle.remove()


def batches(count: int, size: int, generator: torch.Generator) -> Iterator[Int64[Tensor, " _"]]:
    """Yield rows in batches without end, every row once before any comes again, shuffled each time."""
    while True:
        yield from torch.split(torch.randperm(count, generator=generator), size)


def arrays_of(model: nn.Module) -> dict[str, np.ndarray]:
    """Return the model's parameters and buffers as arrays."""
    return {name: value.detach().cpu().numpy().copy() for name, value in model.state_dict().items()}


def load_arrays(model: nn.Module, arrays: Mapping[str, np.ndarray]) -> nn.Module:
    """Fill the model with arrays from :func:`arrays_of`; return it in evaluation mode, without gradients."""
    model.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in arrays.items()})
    return model.eval().requires_grad_(False)


def require_weights(weights: Mapping[str, np.ndarray], make: Callable[[], nn.Module], name: str) -> None:
    """Refuse weights that are not those of a network, which is made without memory for it.

    Raises:
        ValueError: If a name is missing or unknown, or a shape is another.
    """
    with torch.device("meta"):
        wanted = {key: tuple(value.shape) for key, value in make().state_dict().items()}
    got = {key: value.shape for key, value in weights.items()}
    unlike = sorted(key for key in wanted | got if wanted.get(key) != got.get(key))
    if unlike:
        raise ValueError(
            f"{name}: expected {unlike[0]} of shape {wanted.get(unlike[0])}, got {got.get(unlike[0])}"
        )


def as_images(images: Float[Tensor, "n c h w"]) -> Float32[np.ndarray, "n c h w"]:
    """Return a batch as float32 NCHW in [0, 1] on the CPU."""
    array: Images = images.detach().clamp(0, 1).to("cpu", torch.float32).numpy()
    return array
