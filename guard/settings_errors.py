"""What is wrong with a setting, in words that name it, what came and what was expected."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

__all__ = ["explain"]


def explain(error: ValidationError, known: Mapping[int, type[BaseModel]]) -> str:
    """Return the first thing that is wrong, names that are not known before all else, and how many more.

    Args:
        error: What reading the settings raised.
        known: The settings that there are, by how deep they are nested.
    """
    first, *more = sorted(error.errors(include_url=False), key=_misspelt_first)
    field = ".".join(str(part) for part in first["loc"])
    rest = f" (and {len(more)} more)" if more else ""
    if first["type"] == "missing":
        flag = field.replace("_", "-")
        return (
            f"setting {field!r} is missing; give --{flag}, GUARD_{field.upper()}, or {field} in the TOML file"
        )
    if first["type"] == "extra_forbidden":
        names = known[len(first["loc"])].model_fields
        return f"setting {field!r} is not known; known are {', '.join(names)}{rest}"
    if not field:
        return f"settings: {first['ctx']['error']}{rest}"
    return f"setting {field!r}: {first['msg']}, got {first['input']!r}{rest}"


def _misspelt_first(error: ErrorDetails) -> bool:
    """Sort a name that is not known before the setting that is missing for it."""
    return error["type"] != "extra_forbidden"
