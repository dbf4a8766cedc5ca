"""Types of every call checked by beartype; shapes too, by jaxtyping, where a signature tells any.

jaxtyping's import hook wraps every function in what shapes need, which checks arguments twice and costs
more than most of our functions do. Where no annotation is of an array there is no shape to remember, and
beartype is enough.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import FunctionType
from typing import Any, get_args, get_type_hints

import jaxtyping
from beartype import beartype

_with_shapes = jaxtyping.jaxtyped


def install() -> None:
    """Check all that is imported of our packages from now on."""
    jaxtyping.jaxtyped = _checked
    jaxtyping.install_import_hook(["guard", "calibration"], "beartype.beartype")


def _checked(checked: Any = None, *, typechecker: Callable[[Any], Any] | None = None) -> Any:
    """Stand in for the decorator that the import hook puts on every function and class."""
    if typechecker is None:  # not the hook's: what code of ours makes of jaxtyping itself
        return _with_shapes(checked)
    if checked is None:
        return partial(_checked, typechecker=typechecker)
    if isinstance(checked, FunctionType) and not tells_a_shape(checked):
        return beartype(checked)
    return _with_shapes(checked, typechecker=typechecker)


def tells_a_shape(function: Callable[..., Any]) -> bool:
    """Return whether an annotation is, or holds, an array of some shape; true where it cannot be told yet."""
    try:
        hints = get_type_hints(function, include_extras=True)
    except Exception:  # noqa: BLE001 - whatever names that are not there yet come to
        return True
    return any(map(_is_shaped, hints.values()))


def _is_shaped(hint: Any) -> bool:
    if isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    return any(map(_is_shaped, hint if isinstance(hint, list) else get_args(hint)))  # a list: of a Callable
