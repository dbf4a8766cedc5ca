"""How often a clean input is at least as suspicious: conformal p-values."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64

__all__ = ["p_value"]


def p_value(value: float, clean_values: Float64[np.ndarray, " n"]) -> float:
    r"""Return the conformal p-value of an input; small is suspicious.

    .. math:: p(x) = \frac{1 + \#\{i : v_i \le v(x)\}}{n + 1}

    Args:
        value: Minus the score of the input over all N blends (STRIP's mean entropy), or a lower bound of
            it, for which the p-value is a lower bound too.
        clean_values: Those of the n calibration images, ascending.

    References:
        Vovk, Gammerman, Shafer, Algorithmic Learning in a Random World, 2005, section 2.2.
    """
    below = int(clean_values.searchsorted(value, side="right"))
    return (1 + below) / (len(clean_values) + 1)
