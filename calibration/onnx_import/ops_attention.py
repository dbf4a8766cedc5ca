"""Attention as one operator, which exporters write from opset 23 on."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional

from calibration.onnx_import.builder import GraphBuilder
from calibration.onnx_import.converter import Converter
from calibration.onnx_import.op import Op

__all__ = ["CONVERTERS", "attend"]


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    heads: tuple[int, int] | None,
    scale: float | None,
    softcap: float,
    causal: bool,
) -> Tensor:
    r"""Return scaled dot product attention.

    .. math:: \operatorname{softmax}(c \tanh(s\, Q K^\top / c) + M)\, V

    Args:
        query: ``(n, heads, tokens, width)``, or ``(n, tokens, heads * width)``.
        key: Likewise, perhaps with fewer heads.
        value: Likewise.
        mask: Added to the scores, or True where a token is seen.
        heads: Heads of the query and of key and value, where the tensors have three axes.
        scale: Factor s; None for one over the root of the width.
        softcap: c; 0 for none.
        causal: Whether a token sees none after it.
    """
    if heads is not None:
        query, key, value = _split(query, heads[0]), _split(key, heads[1]), _split(value, heads[1])
    repeat = query.shape[1] // key.shape[1]
    if repeat > 1:
        key, value = key.repeat_interleave(repeat, 1), value.repeat_interleave(repeat, 1)
    if softcap:
        seen = _scores(query, key, scale, softcap, _bias(mask, query, key, causal=causal)).softmax(-1) @ value
    else:
        bias = _bias(mask, query, key, causal=causal)
        seen = functional.scaled_dot_product_attention(query, key, value, bias, scale=scale)
    return seen if heads is None else seen.transpose(1, 2).flatten(2)


def _split(tokens: Tensor, heads: int) -> Tensor:
    n, count, width = tokens.shape
    return tokens.reshape(n, count, heads, width // heads).transpose(1, 2)


def _bias(mask: Tensor | None, query: Tensor, key: Tensor, *, causal: bool) -> Tensor | None:
    """Return one mask, to be added to the scores."""
    bias = mask
    if mask is not None and mask.dtype == torch.bool:
        bias = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, -torch.inf)
    if not causal:
        return bias
    later = torch.full(
        (query.shape[-2], key.shape[-2]), -torch.inf, dtype=query.dtype, device=query.device
    ).triu(1)
    return later if bias is None else bias + later


def _scores(query: Tensor, key: Tensor, scale: float | None, softcap: float, bias: Tensor | None) -> Tensor:
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    capped = softcap * torch.tanh(query @ key.transpose(-2, -1) * factor / softcap)
    return capped if bias is None else capped + bias


def _convert_attention(builder: GraphBuilder, op: Op) -> Any:
    """Scaled dot product attention, without a cache of earlier tokens."""
    if any(op.has_input(index) for index in (4, 5, 6)) or any(op.used[1:]):
        op.refuse("keeps a cache or gives its scores, and only plain attention is known")
    heads = (op.attributes.get("q_num_heads"), op.attributes.get("kv_num_heads"))
    return builder.call(
        attend,
        op.input(0),
        op.input(1),
        op.input(2),
        op.optional(3),
        heads=heads if builder.rank(op.input(0)) == 3 else None,
        scale=op.attributes.get("scale"),
        softcap=op.attribute("softcap", 0.0),
        causal=bool(op.attribute("is_causal", 0)),
    )


CONVERTERS: Final[Mapping[str, Converter]] = MappingProxyType({"Attention": _convert_attention})
"""Operator, and what it becomes."""
