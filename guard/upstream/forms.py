"""In which form a model server takes images: as which tensor, or as encoded files. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from guard.arrays import held
from guard.artifact import InputSpec, Preprocessing
from guard.messages import Tensor
from guard.rpc.contents import encode_raw
from guard.rpc.pb import open_inference_pb2 as pb

__all__ = ["EncodedInput", "InputForm", "alike", "form_of"]

_FLOATS: Final = frozenset({"FP32", "FP16", "BF16"})


@dataclass(frozen=True)
class EncodedInput:
    """An input that takes encoded images.

    Attributes:
        record: What the server does with them.
        name: Of the input; empty for that of the artifact.
    """

    record: Preprocessing
    name: str = ""


@dataclass(frozen=True)
class InputForm:
    """The input of a request.

    Attributes:
        name: Its name.
        datatype: V2 datatype.
        column: Whether encoded images come in shape ``(n, 1)`` rather than ``(n,)``.
    """

    name: str
    datatype: str
    column: bool = True

    def put(self, images: np.ndarray, request: pb.ModelInferRequest) -> None:
        """Add images to a request, as raw contents.

        Args:
            images: Rows in the layout of the model, or encoded files as an array of bytes.
            request: Without inputs yet.
        """
        if self.datatype == "BYTES":
            shape = (len(images), 1) if self.column else (len(images),)
            raw = b"".join(len(file).to_bytes(4, "little") + file for file in images.tolist())
        else:
            shape = images.shape
            raw = encode_raw(Tensor(self.name, self.datatype, held(images, self.datatype)))
        request.inputs.add(name=self.name, datatype=self.datatype, shape=shape)
        request.raw_input_contents.append(raw)


def form_of(
    metadata: pb.ModelMetadataResponse | None, source: InputSpec, encoded: EncodedInput | None = None
) -> InputForm:
    """Return the form in which a server takes images: as it says itself, else as the artifact's model does.

    Args:
        metadata: What it says of its model; None where it says nothing.
        source: The input of the artifact's model.
        encoded: What the operator says of encoded images; None where it takes tensors.
    """
    said = metadata.inputs[0] if metadata is not None and len(metadata.inputs) == 1 else None
    if encoded is not None:
        column = said is None or len(said.shape) != 1
        return InputForm(encoded.name or source.name, "BYTES", column)
    return InputForm(source.name, source.datatype if said is None else said.datatype)


def alike(datatype: str, calibrated: str) -> bool:
    """Whether values of one datatype can stand for those of another: both floating-point, or the same.

    Examples:
        >>> alike("FP16", "FP32"), alike("UINT8", "FP32")
        (True, False)
    """
    return datatype == calibrated or {datatype, calibrated} <= _FLOATS
