"""Triggers that bend the image: the smallest warp for each label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from calibration.scan.evidence import Prior
from calibration.scan.label_scan import LabelScan

__all__ = ["WarpInversion"]


@dataclass(frozen=True)
class WarpInversion(LabelScan):
    r"""Looks for a label that a far smaller smooth displacement leads to than to the others.

    .. math:: \min_{g} \; \mathbb{E}_x \, \ell\bigl(t, f(x \circ (\mathrm{id} + U g))\bigr)
              + \lambda \sqrt{\mathrm{mean} \lVert U g \rVert^2}

    with g a coarse grid of displacements and U its bicubic enlargement. Most labels of most models cannot be
    reached by any warp: their size is that of the warp the search ended with, a lower bound.

    References:
        The trigger's form is that of Nguyen and Tran, WaNet, ICLR 2021; the search that of Wang et al.,
        Neural Cleanse, 2019.

    Deviations:
        The combination is ours.
    """

    name: ClassVar[str] = "warp_inversion"
    form: ClassVar[str] = "warp"
    prior: ClassVar[Prior] = Prior(0.3, 8.0)
