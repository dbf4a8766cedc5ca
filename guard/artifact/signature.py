"""What goes into a model and what comes out of it, read from the ONNX graph without running it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import onnx
from onnx import TensorProto

from guard.errors import UnfitModelError

__all__ = ["Signature", "read_signature"]

Layout = Literal["NCHW", "NHWC"]

InputDatatype = Literal["FP32", "FP16", "BF16", "UINT8"]
OutputDatatype = Literal["FP32", "FP16", "BF16"]

_INPUT_DATATYPES: Final[dict[int, InputDatatype]] = {
    TensorProto.FLOAT: "FP32",
    TensorProto.FLOAT16: "FP16",
    TensorProto.BFLOAT16: "BF16",
    TensorProto.UINT8: "UINT8",
}
_OUTPUT_DATATYPES: Final[dict[int, OutputDatatype]] = {
    TensorProto.FLOAT: "FP32",
    TensorProto.FLOAT16: "FP16",
    TensorProto.BFLOAT16: "BF16",
}
_CHANNELS: Final = (1, 3, 4)


@dataclass(frozen=True)
class Signature:
    """The tensors of an image classifier.

    Attributes:
        shape: Shape of one row, without the batch axis.
        layout: Order of the axes, the batch included.
        fixed_batch: The batch size built into the graph, or None where the axis is dynamic.
        classes: Number of classes, or None where the graph does not say.
    """

    input_name: str
    datatype: InputDatatype
    shape: tuple[int, int, int]
    layout: Layout
    fixed_batch: int | None
    output_name: str
    output_datatype: OutputDatatype
    classes: int | None


def read_signature(
    model: onnx.ModelProto,
    where: str,
    *,
    layout: Layout | None = None,
    size: tuple[int, int] | None = None,
) -> Signature:
    """Return the signature of an image classifier.

    Args:
        model: The parsed model.
        where: Its name, for errors.
        layout: Layout to take where the shape does not tell.
        size: Height and width to take where the graph leaves them free.

    Raises:
        UnfitModelError: If the model has several inputs or outputs, an input that is no batch
            of images, or an output that is no row of classes.
    """
    source = _only(_free_inputs(model.graph), "input", where)
    sink = _only([output.name for output in model.graph.output], "output", where)
    values = {value.name: value for value in (*model.graph.input, *model.graph.output)}
    datatype, (batch, *axes) = _image_input(values[source], where)
    output_datatype, classes = _class_output(values[sink], where)
    chosen = layout or _guess_layout(axes, where)
    return Signature(
        input_name=source,
        datatype=datatype,
        shape=_row_shape(axes, chosen, size, where),
        layout=chosen,
        fixed_batch=batch,
        output_name=sink,
        output_datatype=output_datatype,
        classes=classes,
    )


def _free_inputs(graph: onnx.GraphProto) -> list[str]:
    defaulted = {tensor.name for tensor in graph.initializer}
    return [value.name for value in graph.input if value.name not in defaulted]


def _only(names: list[str], kind: str, where: str) -> str:
    if len(names) != 1:
        raise UnfitModelError(
            f"{where} has {len(names)} {kind}s ({', '.join(names) or 'none'}), expected exactly one {kind}; "
            f"export the classifier alone, with images in and class scores out"
        )
    return names[0]


def _dimensions(value: onnx.ValueInfoProto) -> list[int | None]:
    shape = value.type.tensor_type.shape
    return [dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None for dim in shape.dim]


def _element_name(value: onnx.ValueInfoProto) -> str:
    return TensorProto.DataType.Name(value.type.tensor_type.elem_type)


def _image_input(value: onnx.ValueInfoProto, where: str) -> tuple[InputDatatype, list[int | None]]:
    datatype = _INPUT_DATATYPES.get(value.type.tensor_type.elem_type)
    dimensions = _dimensions(value)
    if datatype is None or len(dimensions) != 4:
        raise UnfitModelError(
            f"{where}: input {value.name!r} is {_element_name(value)} of {len(dimensions)} axes "
            f"{_show(dimensions)}; expected a batch of images: 4 axes of FLOAT, FLOAT16, BFLOAT16 or UINT8"
        )
    return datatype, dimensions


def _class_output(value: onnx.ValueInfoProto, where: str) -> tuple[OutputDatatype, int | None]:
    datatype = _OUTPUT_DATATYPES.get(value.type.tensor_type.elem_type)
    dimensions = _dimensions(value)
    known_rank = value.type.tensor_type.HasField("shape")
    if datatype is None or (known_rank and len(dimensions) != 2) or (known_rank and dimensions[1] == 1):
        raise UnfitModelError(
            f"{where}: output {value.name!r} is {_element_name(value)} of shape {_show(dimensions)}; "
            f"expected one row of at least 2 class scores for each image: "
            f"2 axes of FLOAT, FLOAT16 or BFLOAT16"
        )
    return datatype, dimensions[1] if known_rank else None


def _guess_layout(axes: list[int | None], where: str) -> Layout:
    first, last = axes[0] in _CHANNELS, axes[2] in _CHANNELS
    if first == last:
        raise UnfitModelError(
            f"{where}: an input of shape {_show([None, *axes])} does not tell channels first from channels "
            f"last; say which with --layout NCHW or --layout NHWC"
        )
    return "NCHW" if first else "NHWC"


def _row_shape(
    axes: list[int | None], layout: Layout, size: tuple[int, int] | None, where: str
) -> tuple[int, int, int]:
    spatial = iter(size or (None, None))
    channel = 0 if layout == "NCHW" else 2
    wanted = [None if axis == channel else next(spatial) for axis in range(3)]
    filled = [have or want for have, want in zip(axes, wanted, strict=True)]
    clash = [(have, want) for have, want in zip(axes, wanted, strict=True) if have and want and have != want]
    if clash:
        raise UnfitModelError(
            f"{where}: the model takes images of shape {_show(axes)}, but the size given is {size}; "
            f"leave the size out or give the model's own"
        )
    if None in filled:
        raise UnfitModelError(
            f"{where}: the model leaves {_show(axes)} of its {layout} image shape open; "
            f"give height and width with --resize H W"
        )
    return tuple(filled)  # type: ignore[return-value]


def _show(dimensions: list[int | None]) -> str:
    return "(" + ", ".join("?" if size is None else str(size) for size in dimensions) + ")"
