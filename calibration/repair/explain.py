"""What repairs there are, and what can be set in each, in words taken from where they are defined."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields
from typing import Any

from calibration.repair.settings import hints_of, require_known, spelled
from calibration.repair.table import DEFAULT_METHOD, REPAIRS, Need

__all__ = ["explain_method", "list_methods"]

_SECTION = re.compile(r"^(Args|Raises|References|Deviations|Examples|\*\*Deviations:\*\*):?\s*$", re.M)
_FLAGS: dict[Need, str] = {
    "images": "clean images (--data)",
    "labels": "their labels",
    "trigger": "a trigger (--scan or --trigger)",
    "distribution": "a distribution of triggers (--scan, of guard scan --distribution)",
    "poisoned set": "the training set that may be poisoned (--training-set)",
}


def list_methods(columns: int = 100) -> str:
    """Return every repair with what it does and needs."""
    lines = ["Repairs, for --method (--explain METHOD tells all of one):", ""]
    width = max(map(len, REPAIRS))
    for name, entry in REPAIRS.items():
        usual = " (default)" if name == DEFAULT_METHOD else ""
        needs = ", ".join(_FLAGS[need] for need in entry.needs) or "nothing but the model"
        lines += _wrapped(f"{entry.does}{usual}", f"  {name:<{width}}  ", columns)
        lines += _wrapped(f"needs {needs}", " " * (width + 4), columns)
    return "\n".join(lines) + "\n"


def explain_method(method: str, columns: int = 100) -> str:
    """Return what a repair is and every option of it: type, default, and its own words.

    Raises:
        OptionError: If there is no such repair.
    """
    require_known(method)
    entry = REPAIRS[method]
    kind = entry.load()
    text = inspect.getdoc(kind) or ""
    told, hints = _arguments(text), hints_of(method)
    lines = [f"{method}: {_summary(text)}", ""]
    lines += _wrapped("needs " + (", ".join(_FLAGS[need] for need in entry.needs) or "nothing"), "", columns)
    lines += ["", f"Options, for --set name=value or a table [{method}] in --config:", ""]
    for field in fields(kind):
        lines += [f"  {field.name} = {_default(field)}    ({spelled(hints[field.name])})"]
        lines += _wrapped(told.get(field.name, ""), "      ", columns)
    for title in ("References", "Deviations"):
        body = _section(text, title)
        if body:
            lines += ["", f"{title}:", *textwrap.indent(body, "  ").splitlines()]
    return "\n".join(lines).rstrip() + "\n"


def _wrapped(text: str, start: str, columns: int) -> list[str]:
    return textwrap.wrap(
        text, columns, initial_indent=start, subsequent_indent=" " * len(start), break_on_hyphens=False
    )


def _summary(text: str) -> str:
    return " ".join(text.partition("\n\n")[0].split())


def _default(field: Field[Any]) -> str:
    value = field.default
    if value is MISSING:
        made: Any = field.default_factory
        value = None if made is MISSING else made()
    return _toml(value)


def _toml(value: Any) -> str:
    """Return a value as it is written after ``--set name=``."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _section(text: str, title: str) -> str:
    """Return a section of a docstring without its heading, as far in as nothing."""
    parts = _SECTION.split(text)
    for heading, body in zip(parts[1::2], parts[2::2], strict=True):
        if heading.strip("*: ") == title:
            return textwrap.dedent(body.strip("\n")).strip()
    return ""


def _arguments(text: str) -> dict[str, str]:
    """Return what the docstring says of each option."""
    return {name: " ".join(words) for name, words in _entries(_section(text, "Args"))}


def _entries(section: str) -> Iterator[tuple[str, list[str]]]:
    name, words = "", list[str]()
    for line in section.splitlines():
        begins = re.match(r"(\w+): (.*)", line)
        if begins:
            if name:
                yield name, words
            name, words = begins[1], [begins[2].strip()]
        else:
            words.append(line.strip())
    if name:
        yield name, words
