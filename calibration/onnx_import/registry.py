"""Every operator that can be imported, and the refusal of all others at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType, ModuleType
from typing import Final

import onnx

from calibration.errors import UnsupportedOperatorError
from calibration.onnx_import import (
    ops_activation,
    ops_attention,
    ops_basic,
    ops_conv,
    ops_elementwise,
    ops_index,
    ops_linear,
    ops_norm,
    ops_pool,
    ops_reduce,
    ops_resize,
    ops_shape,
    ops_space,
)
from calibration.onnx_import.converter import Converter
from calibration.onnx_import.op import domain_of, qualified_name

__all__ = ["CONVERTERS", "SUPPORTED", "refuse_missing"]

_FAMILIES: Final[tuple[ModuleType, ...]] = (
    ops_activation,
    ops_attention,
    ops_basic,
    ops_conv,
    ops_elementwise,
    ops_index,
    ops_linear,
    ops_norm,
    ops_pool,
    ops_reduce,
    ops_resize,
    ops_shape,
    ops_space,
)

CONVERTERS: Final[Mapping[str, Converter]] = MappingProxyType(
    {name: converter for family in _FAMILIES for name, converter in family.CONVERTERS.items()}
)
"""Operator of ONNX's own domain, and its converter."""

SUPPORTED: Final[frozenset[str]] = frozenset(CONVERTERS) | {"If"}
"""Operators that can be imported; ``If`` where its condition is known."""

_QUANTIZED: Final = ("Quantize", "Dequantize", "QLinear", "Integer", "DynamicQuantize")


def refuse_missing(model: onnx.ModelProto, where: str) -> None:
    """Refuse a model with operators that cannot be imported, naming all of them.

    Raises:
        UnsupportedOperatorError: With each one's name, one node that uses it, and the opset.
    """
    opsets = {entry.domain or "": entry.version for entry in model.opset_import}
    missing: dict[str, str] = {}
    for node in _nodes(model.graph):
        name = qualified_name(node)
        if name not in SUPPORTED:
            opset = opsets.get(domain_of(node), 0)
            missing.setdefault(name, f"{name} (node {node.name!r}, opset {opset})")
    if missing:
        quantized = any(part in name for name in missing for part in _QUANTIZED)
        advice = (
            "give the floating-point model it was quantized from"
            if quantized
            else "export the classifier alone, without pre- and post-processing, by torch.onnx.export"
        )
        raise UnsupportedOperatorError(
            f"{where} uses {len(missing)} operator(s) that cannot be trained: {', '.join(missing.values())}; "
            f"{advice}",
            operators=tuple(missing),
        )


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yield every node, those of branches included."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _nodes(attribute.g)
