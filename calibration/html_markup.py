"""HTML by construction: text is escaped unless it is markup already, so nothing from outside gets through."""

from __future__ import annotations

import html
from collections.abc import Sequence

from calibration.wording import printable

__all__ = ["Markup", "element", "join", "table"]

_VOID = frozenset({"br", "hr", "img", "meta", "line", "rect", "path", "circle"})


class Markup(str):
    """Text that is HTML; whatever else is a string is shown as it is."""

    __slots__ = ()


def element(tag: str, *inside: str, **attributes: str | float | int) -> Markup:
    """Return an element.

    Args:
        tag: Its name.
        inside: What it holds; escaped, :class:`Markup` aside.
        attributes: Escaped; ``_`` stands for ``-``, and one at the end is left out (``class_``).

    Examples:
        >>> element("b", "1 < 2", element("i", "!"), class_="x")
        '<b class="x">1 &lt; 2<i>!</i></b>'
    """
    named = "".join(f' {_name(name)}="{_escape(str(value))}"' for name, value in attributes.items())
    if tag in _VOID:
        return Markup(f"<{tag}{named}/>" if tag in {"line", "rect", "path", "circle"} else f"<{tag}{named}>")
    return Markup(f"<{tag}{named}>{join(*inside)}</{tag}>")


def join(*parts: str) -> Markup:
    """Return parts one after the other; escaped, :class:`Markup` aside."""
    return Markup("".join(part if isinstance(part, Markup) else _escape(part) for part in parts))


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    caption: str,
    numbers: int = 0,
    hits: Sequence[bool] = (),
) -> Markup:
    """Return a table with a header, the first cell of each row a header too.

    Args:
        columns: Their names.
        rows: A cell for each column.
        caption: What it shows.
        numbers: How many columns at the right are numbers.
        hits: Rows to mark, one for each of the first rows.
    """
    styles = ["" if column < len(columns) - numbers else "num" for column in range(len(columns))]
    named = zip(columns, styles, strict=True)
    head = [element("th", name, scope="col", **_class(style)) for name, style in named]
    marked = [*hits, *(False for _ in rows[len(hits) :])]
    body = [_row(row, styles, "hit" if hit else "") for row, hit in zip(rows, marked, strict=True)]
    made = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", *head)),
        element("tbody", *body),
    )
    return element("div", made, class_="wide")


def _row(row: Sequence[str], styles: Sequence[str], style: str) -> Markup:
    header = element("th", row[0], scope="row")
    return element("tr", header, *map(_cell, row[1:], styles[1:]), **_class(style))


def _cell(text: str, style: str) -> Markup:
    return element("td", text, **_class(style))


def _class(style: str) -> dict[str, str | float | int]:
    return {"class_": style} if style else {}


def _name(name: str) -> str:
    return name.rstrip("_").replace("_", "-")


def _escape(text: str) -> str:
    return html.escape(printable(text), quote=True)
