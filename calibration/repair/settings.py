"""A repair's options as a user writes them, each held against what the repair says that it takes."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from calibration.annotated import fits
from calibration.errors import OptionError
from calibration.repair.table import REPAIRS

__all__ = ["hints_of", "options_in_file", "options_in_table", "options_in_words", "require_known", "spelled"]

_WORDS = {
    bool: "true or false", int: "a whole number", float: "a number", str: "text", NoneType: "none",
}  # fmt: skip


def require_known(method: str) -> None:
    """Refuse a repair that there is not.

    Raises:
        OptionError: Naming those that there are.
    """
    if method not in REPAIRS:
        raise OptionError(f"--method {method}: expected one of {', '.join(REPAIRS)}; see --list")


def options_in_file(path: Path, method: str) -> dict[str, Any]:
    """Return a repair's options in a TOML file, which holds a table for each repair.

    Raises:
        OptionError: If the file cannot be read, holds anything but tables of repairs, or an option is unknown
            or of another type.
    """
    try:
        tables = tomllib.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise OptionError(f"--config {path} cannot be read: {error}") from error
    for name, table in tables.items():
        if name not in REPAIRS or not isinstance(table, dict):
            raise OptionError(
                f"--config {path}: {name!r} is no table of a repair's; expected tables such as [{method}], "
                f"named as in --list"
            )
    return options_in_table(tables.get(method, {}), method, f"--config {path}: [{method}]")


def options_in_table(table: Mapping[str, Any], method: str, where: str) -> dict[str, Any]:
    """Return a repair's options in a table of TOML.

    Args:
        table: Values by the options' names.
        method: The repair.
        where: The table, for errors.

    Raises:
        OptionError: If an option is unknown or of another type.
    """
    return {name: _checked(method, name, _frozen(value), f"{where} {name}") for name, value in table.items()}


def options_in_words(words: Sequence[str], method: str) -> dict[str, Any]:
    """Return a repair's options from ``name=value``, values as in TOML; text needs no quotes.

    Raises:
        OptionError: If there is no ``=``, or an option is unknown, given twice, or of another type.
    """
    options: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        name = name.strip()
        if not equals or not name:
            raise OptionError(f"--set {word}: expected name=value, such as epochs=10")
        if name in options:
            raise OptionError(f"--set {word}: {name} was given before; give it once")
        options[name] = _checked(method, name, _value(text.strip()), f"--set {word}")
    return options


def hints_of(method: str) -> Mapping[str, Any]:
    """Return the type of each option, in their order."""
    kind = REPAIRS[method].load()
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


def spelled(hint: Any) -> str:
    """Return what an annotation asks for, in words.

    Examples:
        >>> spelled(int | None), spelled(Literal["a", "b"]), spelled(tuple[float, ...])
        ('a whole number or none', "'a' or 'b'", '[a number, ...]')
    """
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(map(spelled, parts))
    if origin is Literal:
        return " or ".join(map(repr, parts))
    if origin is tuple:
        return f"[{', '.join('...' if part is Ellipsis else spelled(part) for part in parts)}]"
    return _WORDS.get(hint, getattr(hint, "__name__", str(hint)))


def _checked(method: str, name: str, value: Any, where: str) -> Any:
    hints = hints_of(method)
    if name not in hints:
        known = ", ".join(hints) or "none"
        raise OptionError(f"{where}: {method} has no option {name!r}; expected one of {known}")
    hint = hints[name]
    if value == "none" and fits(None, hint):
        return None
    if not fits(value, hint):
        raise OptionError(
            f"{where}: {method}'s {name} is {spelled(hint)}, got {value!r}; "
            f"see guard repair --explain {method}"
        )
    return _as_floats(value, hint)


def _as_floats(value: Any, hint: Any) -> Any:
    """Return a value whose whole numbers are floats where floats are meant."""
    parts = get_args(hint)
    if get_origin(hint) in (Union, UnionType):
        return _as_floats(value, next(part for part in parts if fits(value, part)))
    if hint is float:
        return float(value)
    if isinstance(value, tuple):
        kinds = parts if Ellipsis not in parts else (parts[0],) * len(value)
        return tuple(map(_as_floats, value, kinds))
    return value


def _value(text: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return _frozen(parsed["value"]) if parsed.keys() == {"value"} else text


def _frozen(value: Any) -> Any:
    """Return lists of TOML as tuples, as the options of repairs are."""
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
