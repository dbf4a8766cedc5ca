"""Whether values that were read from a file are what a dataclass says it holds."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import fields
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
from jaxtyping import jaxtyped

__all__ = ["fits", "require_fitting"]


def require_fitting(kind: type, values: Mapping[str, object]) -> None:
    """Refuse values that are not of the types that a dataclass annotates its fields with.

    Args:
        kind: The dataclass.
        values: What its fields are to hold, by name; those without a value are not looked at.

    Raises:
        ValueError: If a value is of another type or shape, or holds something infinite or no number.
    """
    hints, wanted = get_type_hints(kind), {field.name: field.type for field in fields(kind)}
    for name, value in values.items():
        if name not in wanted:
            raise ValueError(f"{name}: expected one of {', '.join(wanted)}")
        if not fits(value, hints[name]):
            raise ValueError(f"{name}: expected {wanted[name]}, finite, got {_described(value)}")


def fits(value: object, hint: Any) -> bool:
    """Tell whether a value is of an annotated type; numbers and arrays must be finite.

    Examples:
        >>> fits((1, 2.5), tuple[float, ...]), fits(True, int), fits(float("nan"), float | None)
        (True, False, False)
    """
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(fits(value, part) for part in parts)
    if origin is Literal:
        return isinstance(value, str) and value in parts
    if origin is tuple:
        return isinstance(value, tuple) and _all_fit(value, parts)
    if origin is Mapping:
        return isinstance(value, dict) and all(fits(part, parts[1]) for part in value.values())
    if hint in (int, float):
        return _is_number(value, hint)
    with jaxtyped("context"):  # so that no letter of a shape is bound by what was looked at before
        return isinstance(value, hint) and (not isinstance(value, np.ndarray) or _is_finite(value))


def _all_fit(values: tuple[object, ...], parts: tuple[Any, ...]) -> bool:
    if parts[-1] is Ellipsis:
        return all(fits(value, parts[0]) for value in values)
    return len(values) == len(parts) and all(map(fits, values, parts))


def _is_number(value: object, hint: type) -> bool:
    if isinstance(value, bool) or not isinstance(value, int if hint is int else int | float):
        return False
    return abs(value) <= sys.float_info.max


def _is_finite(array: np.ndarray) -> bool:
    return array.dtype.kind in "biuf" and bool(np.isfinite(array).all())


def _described(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} of shape {value.shape}"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
