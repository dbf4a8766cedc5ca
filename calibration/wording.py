"""Numbers, durations and foreign text as every report writes them."""

from __future__ import annotations

import math
import shlex

__all__ = ["command_line", "number", "percentage", "printable", "seconds_text"]


def printable(text: str) -> str:
    r"""Return text whose control and formatting characters are spelled out.

    Examples:
        >>> printable("cat\x1b[31m")
        'cat\\x1b[31m'
    """
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def command_line(*words: object) -> str:
    r"""Return a command as it can be pasted into a shell, whatever its words hold.

    What cannot be shown is spelled out, so that it cannot reach the terminal; such a path wants typing.

    Examples:
        >>> print(command_line("guard", "serve", "--repository", "my models/it's"))
        guard serve --repository 'my models/it'"'"'s'
    """
    return printable(shlex.join(map(str, words)))


def number(value: float | int | None) -> str:
    """Return a number with about three digits that count.

    Examples:
        >>> [number(value) for value in (1234.5, 98.76, 0.05, 3.0, 1.5e-9, float("inf"), None)]
        ['1,234', '98.8', '0.05', '3', '1.5e-09', '∞', '–']
    """
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if value == int(value) and abs(value) < 1e6:
        return f"{int(value):,}"
    if abs(value) >= 1e6:
        return f"{value:.2e}"
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:.3g}"


def percentage(share: float | int | None) -> str:
    """Return a share in percent, one digit behind the point."""
    return "–" if share is None or not math.isfinite(share) else f"{100 * share:.1f}%"


def seconds_text(seconds: float) -> str:
    """Return a duration as people say it.

    Examples:
        >>> [seconds_text(seconds) for seconds in (0.42, 75.0, 7261.0)]
        ['0.4 s', '1 min 15 s', '2 h 1 min']
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
