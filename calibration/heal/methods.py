"""Which repairs are tried, and in what order: the cheapest first, those only whose needs are met."""

from __future__ import annotations

from collections.abc import Set
from typing import Final

from calibration.errors import OptionError
from calibration.heal.options import AUTO, HealOptions
from calibration.repair.table import REPAIRS, Need

__all__ = ["AUTO_ORDER", "cost_of", "lacking", "named"]

AUTO_ORDER: Final = ("unlearning", "guided_unlearning", "gdm", "nad", "argd")
"""By cost: one epoch with the scan's triggers; a search and a dozen epochs that need neither trigger nor
labels; many epochs with patches of a learned distribution; a teacher and its student."""

_SEARCH: Final = 65_000
"""Images that guided unlearning's own search sends through the network, about."""


def named(options: HealOptions) -> tuple[str, ...]:
    """Return the repairs that may be tried, in order, each once."""
    return AUTO_ORDER if options.method == (AUTO,) else tuple(dict.fromkeys(options.method))


def lacking(method: str, there: Set[Need]) -> str:
    """Return why a repair cannot be tried, in words; nothing if it can.

    Examples:
        >>> lacking("unlearning", {"images", "labels"})
        'unlearning needs a trigger'
        >>> lacking("guided_unlearning", {"images"})
        ''
    """
    needs = [need for need in REPAIRS[method].needs if need not in there]
    words = [need if need in ("images", "labels") else f"a {need}" for need in needs]
    return f"{method} needs {' and '.join(words)}" if words else ""


def cost_of(method: str, options: HealOptions, images: int) -> float:
    """Return what a repair takes, in images forwards and back, about; for an estimate of what is left.

    Raises:
        OptionError: If an option of it is out of its range.
    """
    try:
        repair = REPAIRS[method].make(**options.repair.get(method, {}))
    except (TypeError, ValueError) as error:
        raise OptionError(f"{method}: {error}; see guard repair --explain {method}") from error
    epochs = float(getattr(repair, "epochs", 20))
    return images * epochs * 1.5 + (_SEARCH if method == "guided_unlearning" else 0)
