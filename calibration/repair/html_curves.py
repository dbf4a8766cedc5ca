"""Line charts of what was minimised, one for each stage of a repair, as SVG."""

from __future__ import annotations

from collections.abc import Sequence

from calibration.html_markup import Markup, element, join
from calibration.html_page import svg_text
from calibration.repair.base import StageRecord
from calibration.wording import number

__all__ = ["loss_curve"]

_WIDTH, _HEIGHT = 960.0, 190.0
_LEFT, _RIGHT, _HEAD, _TOP, _FLOOR = 84.0, 940.0, 18.0, 30.0, 156.0
_POINTS = 40


def loss_curve(stage: StageRecord) -> Markup:
    """Return the chart of a stage's losses; nothing where there are fewer than two to join."""
    losses = stage.losses
    if len(losses) < 2:
        return Markup()
    low, high = min(losses), max(losses)
    places = _places(losses, low, high)
    outline = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    marked = places if len(places) <= _POINTS else ()
    return element(
        "figure",
        element(
            "svg",
            svg_text(_LEFT, _HEAD, f"{stage.name}: mean loss of each epoch or round", "head"),
            *(_level(value, y) for value, y in _levels(low, high)),
            element("path", d=f"M{outline}", class_="curve"),
            *(element("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r=2.5, class_="point") for x, y in marked),
            svg_text(_LEFT, _FLOOR + 20, "1", "note middle"),
            svg_text(_RIGHT, _FLOOR + 20, f"{len(losses)}", "note middle"),
            viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
            role="img",
            aria_label=f"Line chart: loss of stage {stage.name} over {len(losses)} epochs or rounds, from "
            f"{number(losses[0])} to {number(losses[-1])}.",
        ),
        class_="chart",
    )


def _places(losses: Sequence[float], low: float, high: float) -> list[tuple[float, float]]:
    step = (_RIGHT - _LEFT) / (len(losses) - 1)
    return [(_LEFT + step * place, _height(loss, low, high)) for place, loss in enumerate(losses)]


def _height(loss: float, low: float, high: float) -> float:
    share = (loss - low) / (high - low) if high > low else 0.5
    return _FLOOR - share * (_FLOOR - _TOP)


def _levels(low: float, high: float) -> list[tuple[float, float]]:
    values = [low, (low + high) / 2, high] if high > low else [low]
    return [(value, _height(value, low, high)) for value in values]


def _level(value: float, y: float) -> Markup:
    return join(
        element("line", x1=_LEFT, y1=f"{y:.1f}", x2=_RIGHT, y2=f"{y:.1f}", class_="grid"),
        svg_text(_LEFT - 8, y + 4, number(value), "note end"),
    )
