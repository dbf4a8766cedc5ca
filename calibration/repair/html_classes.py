"""A bar chart of how the accuracy of each class changed, as SVG.

Up to 64 classes have a row each, in their order; of more, those that changed most are shown.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from calibration.evaluation.numbers import Share
from calibration.html_markup import Markup, element, join
from calibration.html_page import svg_text
from calibration.wording import percentage

__all__ = ["Change", "changes", "class_chart"]

_MOST_ROWS = 64
_ROWS_OF_MANY = 40
_CHARACTERS = 28
_WIDTH, _ROW, _HEAD, _TOP, _BOTTOM = 960.0, 22.0, 18.0, 30.0, 12.0
_NAMES_END, _COUNTS_END, _ZERO, _REACH, _SHARES_END = 216.0, 270.0, 545.0, 200.0, 956.0


@dataclass(frozen=True)
class Change:
    """One class.

    Attributes:
        name: Its index, and its name where it has one.
        images: Images of it.
        before: Share of them that were given their class; NaN of none.
        after: The same now.
        fallen: Whether it fell by more than chance.
    """

    name: str
    images: int
    before: float
    after: float
    fallen: bool

    @property
    def points(self) -> float:
        """By how many points of a hundred it rose; 0 where there are no images."""
        change = 100 * (self.after - self.before)
        return change if math.isfinite(change) else 0.0


def changes(
    before: Sequence[Share], after: Sequence[Share], names: Sequence[str] | None, fallen: Collection[int]
) -> list[Change]:
    """Return the change of each class, in the order of their indices.

    Args:
        before: Of each class.
        after: Of each class.
        names: Theirs, where they have any.
        fallen: Classes whose accuracy fell by more than chance.
    """
    return [
        Change(
            f"{label} {names[label]}" if names and label < len(names) else str(label),
            now.of,
            was.value,
            now.value,
            label in fallen,
        )
        for label, (was, now) in enumerate(zip(before, after, strict=True))
    ]


def class_chart(changed: Sequence[Change]) -> Markup:
    """Return the chart with a caption; nothing of no classes."""
    if not changed:
        return Markup()
    shown, caption = list(changed), f"All {len(changed)} classes."
    if len(changed) > _MOST_ROWS:
        shown = sorted(changed, key=lambda one: -abs(one.points))[:_ROWS_OF_MANY]
        caption = f"The {len(shown)} of {len(changed)} classes that changed most."
    said = "Red: fell by more than chance." if any(one.fallen for one in changed) else ""
    return element(
        "figure", _drawn(shown), element("figcaption", f"{caption} {said}".strip()), class_="chart"
    )


def _drawn(shown: Sequence[Change]) -> Markup:
    scale = _REACH / (max(abs(one.points) for one in shown) or 1.0)
    end = _TOP + _ROW * len(shown)
    return element(
        "svg",
        svg_text(_NAMES_END, _HEAD, "class", "head end"),
        svg_text(_COUNTS_END, _HEAD, "images", "head end"),
        svg_text(_ZERO, _HEAD, "change, in points", "head middle"),
        svg_text(_SHARES_END, _HEAD, "accuracy before → after", "head end"),
        *(_row(one, _TOP + _ROW * place, scale) for place, one in enumerate(shown)),
        element("line", x1=_ZERO, y1=_TOP, x2=_ZERO, y2=end, class_="axis"),
        viewBox=f"0 0 {_WIDTH} {end + _BOTTOM}",
        role="img",
        aria_label=_said(shown),
    )


def _row(one: Change, top: float, scale: float) -> Markup:
    base, length = top + 15, abs(one.points) * scale
    fell, left = one.points < 0, _ZERO - length if one.points < 0 else _ZERO
    mark = "flagged" if one.fallen else "plain"
    beside = (left - 7, "value end") if fell else (left + length + 7, "value")
    bar = element(
        "rect",
        x=f"{left:.1f}",
        y=f"{top + 4:.1f}",
        width=f"{length:.1f}",
        height=f"{_ROW - 8:.1f}",
        class_=mark if fell else "risen",
    )
    name = one.name if len(one.name) <= _CHARACTERS else f"{one.name[: _CHARACTERS - 1]}…"
    return join(
        element("g", element("title", one.name), svg_text(_NAMES_END, base, name, f"end {mark}")),
        svg_text(_COUNTS_END, base, f"{one.images:,}", "note end"),
        bar if length else Markup(),
        svg_text(beside[0], base, f"{one.points:+.1f}" if one.images else "–", f"{beside[1]} {mark}"),
        svg_text(_SHARES_END, base, f"{percentage(one.before)} → {percentage(one.after)}", f"end {mark}"),
    )


def _said(shown: Sequence[Change]) -> str:
    """Return the chart in a sentence, for those who cannot see it."""
    least, most = (pick(shown, key=lambda one: one.points) for pick in (min, max))
    return (
        f"Bar chart: change of accuracy of {len(shown)} classes, in points, from {least.points:+.1f} "
        f"(class {least.name}) to {most.points:+.1f} (class {most.name})."
    )
