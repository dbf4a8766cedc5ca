"""A page that stands alone: no scripts, nothing fetched, its style and its drawings inside."""

from __future__ import annotations

from collections.abc import Mapping

from calibration.html_markup import Markup, element, join
from calibration.html_style import STYLE

__all__ = ["definitions", "mono", "named", "page", "svg_text"]

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
"""Browsers fetch and run nothing for a page, whatever got into it."""


def page(title: str, *sections: Markup) -> str:
    """Return a whole document.

    Args:
        title: Of the browser's window.
        sections: What it shows, from top to bottom.
    """
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", Markup(STYLE)),
    )
    body = element("body", element("main", *sections))
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"


def definitions(entries: Mapping[str, str]) -> Markup:
    """Return names and what each stands for."""
    return element(
        "dl", *(join(element("dt", name), element("dd", value)) for name, value in entries.items())
    )


def mono(text: str) -> Markup:
    """Return paths, digests and the like in letters of one width."""
    return element("span", text, class_="mono")


def named(values: Mapping[str, str | int]) -> str:
    """Return names and values in one line."""
    return ", ".join(f"{name} {value}" for name, value in values.items())


def svg_text(x: float, y: float, text: str, style: str) -> Markup:
    """Return words in a drawing, in its own units."""
    return element("text", text, x=f"{x:.1f}", y=f"{y:.1f}", class_=style)
