"""Takes in a model in any form that is safe to read, as one module that can be trained.

| form | what is read | what is run |
|---|---|---|
| ``model.onnx`` | the graph and its weights, also from files beside it | nothing |
| ``model.pt2`` | graph and tensors of a ``torch.export`` archive (see ``pt2_archive``) | nothing |
| ``package.module:factory`` and ``weights.safetensors`` | the weights | **the factory**: your own code |

Pickles (``.pt``, ``.pth``, ``.bin``, …) are refused: reading one runs whatever it holds.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import onnx
import safetensors
import torch
from onnx import TensorProto
from safetensors.torch import load as load_safetensors
from torch import fx, nn
from torch.export import ExportedProgram

from calibration.errors import ModelError, OptionError, UnsafeModelError
from calibration.import_check import check_import
from calibration.model_source import read_model
from calibration.onnx_import import import_onnx
from calibration.pt2_archive import read_archive
from calibration.torch_to_onnx import TensorFace, to_onnx
from guard.artifact.manifest import sha256_of
from guard.artifact.signature import Layout, Signature, read_signature
from guard.errors import MissingFileError

__all__ = ["Kind", "TrainableModel", "load_trainable"]

Kind = Literal["onnx", "pt2", "factory"]

_FACTORY: Final = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_PICKLES: Final = frozenset({".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".th", ".tar", ".pth.tar"})
_ELEMENTS: Final[dict[torch.dtype, int]] = {
    torch.float32: TensorProto.FLOAT,
    torch.float16: TensorProto.FLOAT16,
    torch.uint8: TensorProto.UINT8,
}


@dataclass(frozen=True)
class TrainableModel:
    """A model taken in.

    Attributes:
        module: The network, in evaluation mode; every layer with weights is one of ``torch.nn``.
        signature: Its input and output.
        source_sha256: Digest of the file it came from; of the weights where a factory made it.
        kind: The form it came in.
        origin: The graph it came as, to give back alike; None where it did not come as a graph.
    """

    module: fx.GraphModule
    signature: Signature
    source_sha256: str
    kind: Kind
    origin: onnx.ModelProto | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Type of the images that the module takes."""
        return {"UINT8": torch.uint8, "FP16": torch.float16}.get(self.signature.datatype, torch.float32)


def load_trainable(
    spec: str | Path,
    *,
    weights: Path | None = None,
    input_shape: tuple[int, int, int] | None = None,
    layout: Layout | None = None,
    size: tuple[int, int] | None = None,
) -> TrainableModel:
    """Take in a model.

    Args:
        spec: ``.onnx`` or ``.pt2`` file, or ``package.module:factory`` for a function of yours that makes the
            network; it is looked for in the current directory too, and importing it runs its code.
        weights: A factory's weights, ``.safetensors``, named as in the network's ``state_dict``.
        input_shape: Channels, height and width of a factory's images; float32, channels first.
        layout: Layout of the images where the model's shape does not tell.
        size: Height and width where the model leaves them open.

    Raises:
        UnsafeModelError: If reading the file could run code that it holds.
        OptionError: If the specification fits no form, or a factory lacks its weights or input shape.
        ModelError: If the model cannot be made trainable.
        ParityError: If what was made of a graph does not answer as ONNX Runtime does.
        GuardError: If the file is missing, or is no image classifier.
    """
    text, path = str(spec), Path(spec)
    if path.suffix.lower() == ".onnx":
        return _from_onnx(path, layout, size)
    if path.suffix.lower() == ".pt2":
        return _from_archive(path, layout, size)
    if path.suffix.lower() in _PICKLES:
        raise UnsafeModelError(
            f"{text} is a pickle, and reading one runs whatever it holds; where you trust it, convert it: "
            f"torch.onnx.export(model.eval(), ...) for the model, or "
            f"safetensors.torch.save_file(model.state_dict(), ...) for the weights and give module:factory"
        )
    if _FACTORY.fullmatch(text):
        return _from_factory(text, weights, input_shape)
    raise OptionError(
        f"{text!r} is no model: expected a .onnx or .pt2 file, or package.module:factory with --weights"
    )


def _from_onnx(path: Path, layout: Layout | None, size: tuple[int, int] | None) -> TrainableModel:
    source, where = read_model(path), str(path)
    signature = read_signature(source.model, where, layout=layout, size=size)
    module = import_onnx(source.model, where)
    check_import(module, source.model, signature, where)
    return TrainableModel(module, signature, source.sha256, "onnx", source.model)


def _from_archive(path: Path, layout: Layout | None, size: tuple[int, int] | None) -> TrainableModel:
    where = str(path)
    if not path.is_file():
        raise MissingFileError(f"{where} is not a file; expected a torch.export archive")
    data = path.read_bytes()
    program = read_archive(data, where)
    source, sink = _faces_of_program(program, where)
    proto = to_onnx(program, source, sink, optimize=False)
    signature = read_signature(proto, where, layout=layout, size=size)
    module = import_onnx(proto, where)
    check_import(module, proto, signature, where)
    return TrainableModel(module, signature, sha256_of(data), "pt2", proto)


def _faces_of_program(program: ExportedProgram, where: str) -> tuple[TensorFace, TensorFace]:
    """Return the input and output of an exported program; what it leaves open stays open."""
    signature = program.graph_signature
    if len(signature.user_inputs) != 1 or len(signature.user_outputs) != 1:
        raise ModelError(
            f"{where} takes {len(signature.user_inputs)} inputs and gives {len(signature.user_outputs)} "
            f"outputs; expected one batch of images and one of logits, export it so"
        )
    names = str(signature.user_inputs[0]), str(signature.user_outputs[0])
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    source, sink = (_face(values[name], name, where) for name in names)
    return source, replace(sink, name="logits")


def _face(value: Any, name: str, where: str) -> TensorFace:
    if value.dtype not in _ELEMENTS:
        raise ModelError(f"{where}: {name} is {value.dtype}; expected float32, float16 or uint8")
    dimensions = tuple(
        size if isinstance(size, int) else "batch" if axis == 0 else f"size_{axis}"
        for axis, size in enumerate(value.shape)
    )
    return TensorFace(name, _ELEMENTS[value.dtype], dimensions)


def _from_factory(
    spec: str, weights: Path | None, input_shape: tuple[int, int, int] | None
) -> TrainableModel:
    if weights is None or weights.suffix.lower() != ".safetensors":
        raise OptionError(f"{spec} needs its weights: give a .safetensors file with --weights, got {weights}")
    if input_shape is None:
        raise OptionError(
            f"{spec} does not say what images it takes; give channels, height and width by --input"
        )
    if not weights.is_file():
        raise MissingFileError(f"{weights} is not a file; expected weights in safetensors format")
    data = weights.read_bytes()
    network = _with_weights(_make(spec), data, f"{weights} for {spec}").eval()
    images = torch.rand((2, *input_shape), generator=torch.Generator().manual_seed(0))
    logits = _answers(network, images, spec)
    if not isinstance(logits, torch.Tensor) or logits.dim() != 2:
        raise ModelError(f"{spec} gives no row of class scores for each image; make it return logits alone")
    signature = Signature(
        input_name="images",
        datatype="FP32",
        shape=input_shape,
        layout="NCHW",
        fixed_batch=None,
        output_name="logits",
        output_datatype="FP32",
        classes=logits.shape[1],
    )
    return TrainableModel(_graph_of(network, images, logits, spec), signature, sha256_of(data), "factory")


def _answers(network: nn.Module, images: torch.Tensor, spec: str) -> Any:
    try:
        with torch.no_grad():
            return network(images)
    except Exception as error:
        shape = " x ".join(map(str, images.shape[1:]))
        raise ModelError(
            f"{spec} does not run on images of {shape}: {_one_line(error)}; give the size that it takes "
            f"by --input"
        ) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _make(spec: str) -> nn.Module:
    """Import the module and call its factory: this runs the user's code."""
    name, _, attribute = spec.partition(":")
    try:
        with _current_directory_first():
            found: Any = importlib.import_module(name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise OptionError(
            f"{spec} cannot be imported: {error}; expected package.module:factory, as seen from the current "
            f"directory"
        ) from error
    try:
        made = found()
    except Exception as error:
        raise OptionError(
            f"{spec} cannot be called: {_one_line(error)}; expected a function that takes no arguments and "
            f"makes the network"
        ) from error
    if not isinstance(made, nn.Module):
        raise OptionError(f"{spec} gives a {type(made).__name__}, expected a torch.nn.Module")
    return made


@contextmanager
def _current_directory_first() -> Iterator[None]:
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)


def _with_weights(network: nn.Module, data: bytes, where: str) -> nn.Module:
    try:
        network.load_state_dict(load_safetensors(data))
    except (safetensors.SafetensorError, RuntimeError) as error:
        raise ModelError(f"{where}: {_one_line(error)}; save the weights from this very network") from error
    return network


def _graph_of(network: nn.Module, images: torch.Tensor, logits: torch.Tensor, spec: str) -> fx.GraphModule:
    """Return the network as a graph: traced, or exported and imported where tracing cannot follow it."""
    try:
        traced = fx.symbolic_trace(network)
        with torch.no_grad():
            faithful = torch.allclose(traced(images), logits, atol=1e-5)
    except Exception:  # noqa: BLE001 a user's forward may fail in any way under tracing
        faithful = False
    if faithful:
        return traced.eval()
    source = TensorFace("images", TensorProto.FLOAT, ("batch", *images.shape[1:]))
    sink = TensorFace("logits", TensorProto.FLOAT, ("batch", logits.shape[1]))
    return import_onnx(to_onnx(network, source, sink, optimize=False), spec)
