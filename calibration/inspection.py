"""What is in a model: its layers and what they cost, its stages, its batch norm, where it came from."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import ValidationError
from torch import fx

from calibration.batch_norm import BatchNormState, batch_norm_state
from calibration.flops import PRODUCTS, layer_flops
from calibration.shapes import SAMPLE_BATCH, node_shapes
from calibration.stages import Stage, find_stages
from calibration.trainable import TrainableModel
from guard.artifact import Profile

__all__ = ["Inspection", "Layer", "inspect_model"]


@dataclass(frozen=True)
class Layer:
    """One row of the table.

    Attributes:
        shape: What it gives for one image.
        parameters: Numbers that are trained.
        flops: Multiplications and additions for one image, of convolutions and matrix products.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    parameters: int
    flops: int


@dataclass(frozen=True)
class Inspection:
    """What was found.

    Attributes:
        source: File or factory, as given.
        opset: ONNX operators the graph is written in, or None.
        exporter: What wrote the graph, or None.
        value_range: Lowest and highest value of the input, or None where nothing tells.
        parameters: All of them, those outside layers included.
    """

    source: str
    kind: str
    sha256: str
    opset: int | None
    exporter: str | None
    input_name: str
    input_type: str
    input_shape: tuple[int | str, ...]
    layout: str
    value_range: tuple[float, float] | None
    output_name: str
    output_type: str
    classes: int | None
    batch_norm: BatchNormState
    stages: tuple[Stage, ...]
    layers: tuple[Layer, ...]
    parameters: int
    flops: int

    def to_json(self) -> str:
        """Return all of it as JSON."""
        record = asdict(self)
        record["batch_norm"]["verdict"] = self.batch_norm.verdict
        return json.dumps(record, indent=2)

    def lines(self) -> list[str]:
        """Return all of it as text."""
        return [*self._head(), "", *self._table(), "", *self._foot()]

    def _head(self) -> list[str]:
        written = f", opset {self.opset}" if self.opset else ""
        exporter = f", by {self.exporter}" if self.exporter else ""
        span = (
            "unknown" if self.value_range is None else f"{self.value_range[0]:g} to {self.value_range[1]:g}"
        )
        return [
            f"model   {self.source} ({self.kind}{written}{exporter})",
            f"sha256  {self.sha256}",
            f"input   {self.input_name} {self.input_type} {_show(self.input_shape)} {self.layout}, "
            f"values {span}",
            f"output  {self.output_name} {self.output_type}, {self.classes or 'untold'} classes",
        ]

    def _table(self) -> list[str]:
        rows = [("layer", "type", "output", "parameters", "FLOPs")]
        rows += [
            (layer.name, layer.type, _show(layer.shape), f"{layer.parameters:,}", _short(layer.flops))
            for layer in self.layers
        ]
        rows.append(("total", "", "", f"{self.parameters:,}", _short(self.flops)))
        widths = [max(len(row[column]) for row in rows) for column in range(5)]
        return [
            "  ".join(
                cell.ljust(width) if column < 3 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]

    def _foot(self) -> list[str]:
        state = self.batch_norm
        stages = [
            f"  {stage.name}  {stage.node}  {stage.channels} x {stage.height} x {stage.width}"
            + (" (tokens)" if stage.layout == "NTC" else "")
            for stage in self.stages
        ]
        return [
            f"batch norm  {state.verdict}: {len(state.kept)} layers, {len(state.bare)} convolutions without",
            "stages" if stages else "stages      none: the network has no feature maps",
            *stages,
        ]


def inspect_model(model: TrainableModel, source: str, *, profile: Path | None = None) -> Inspection:
    """Look at a model.

    Args:
        model: The model, taken in.
        source: What it was taken in from.
        profile: Profile of an artifact, for the range of its input; used if it is of this very model.
    """
    row, signature, proto = model.signature.shape, model.signature, model.origin
    layers = _layers(model.module, node_shapes(model.module, row, dtype=model.dtype))
    return Inspection(
        source=source,
        kind=model.kind,
        sha256=model.source_sha256,
        opset=_opset(model),
        exporter=f"{proto.producer_name} {proto.producer_version}".strip() or None if proto else None,
        input_name=signature.input_name,
        input_type=signature.datatype,
        input_shape=(signature.fixed_batch or "batch", *row),
        layout=signature.layout,
        value_range=_value_range(model, profile),
        output_name=signature.output_name,
        output_type=signature.output_datatype,
        classes=signature.classes,
        batch_norm=batch_norm_state(model.module, row, dtype=model.dtype),
        stages=find_stages(model.module, row, dtype=model.dtype, layout=signature.layout),
        layers=tuple(layers),
        parameters=sum(weight.numel() for weight in model.module.parameters()),
        flops=sum(layer.flops for layer in layers),
    )


def _opset(model: TrainableModel) -> int | None:
    if model.origin is None or model.kind != "onnx":
        return None
    return next(entry.version for entry in model.origin.opset_import if entry.domain in {"", "ai.onnx"})


def _value_range(model: TrainableModel, profile: Path | None) -> tuple[float, float] | None:
    if profile is not None and profile.is_file():
        try:
            known = Profile.model_validate_json(profile.read_bytes())
        except ValidationError:
            return None
        if known.model_sha256 == model.source_sha256:
            return min(known.input.low), max(known.input.high)
    return (0.0, 255.0) if model.signature.datatype == "UINT8" else None


def _layers(module: fx.GraphModule, shapes: dict[fx.Node, tuple[int, ...]]) -> list[Layer]:
    layers = []
    for node, shape in shapes.items():
        if node.op == "call_module":
            layer = module.get_submodule(str(node.target))
            parameters = sum(weight.numel() for weight in layer.parameters())
            cost = layer_flops(layer, node, shapes)
            layers.append(
                Layer(
                    str(node.target),
                    type(layer).__name__,
                    _one_image(shape),
                    parameters,
                    cost // SAMPLE_BATCH,
                )
            )
        elif node.target in PRODUCTS:
            cost = PRODUCTS[node.target](node, shapes)
            layers.append(
                Layer(
                    node.name,
                    getattr(node.target, "__name__", str(node.target)),
                    _one_image(shape),
                    0,
                    cost // SAMPLE_BATCH,
                )
            )
    return layers


def _one_image(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a shape without the batch, wherever the network has put it."""
    if SAMPLE_BATCH in shape:
        place = shape.index(SAMPLE_BATCH)
        return shape[:place] + shape[place + 1 :]
    return (shape[0] // SAMPLE_BATCH, *shape[1:]) if shape and shape[0] % SAMPLE_BATCH == 0 else shape


def _show(shape: tuple[int | str, ...]) -> str:
    return " x ".join(map(str, shape)) or "1"


def _short(number: int) -> str:
    for limit, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= limit:
            return f"{number / limit:.2f} {unit}"
    return str(number)
