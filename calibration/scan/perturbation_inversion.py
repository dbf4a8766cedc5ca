"""Triggers of low amplitude: the weakest universal perturbation for each label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from calibration.scan.evidence import Prior
from calibration.scan.label_scan import LabelScan

__all__ = ["PerturbationInversion"]


@dataclass(frozen=True)
class PerturbationInversion(LabelScan):
    r"""Looks for a label that a far weaker universal perturbation leads to than to the others.

    .. math:: \min_{\delta} \; \mathbb{E}_x \, \ell\bigl(t, f(\mathrm{clip}(x + \delta))\bigr)
              + \lambda \sqrt{\mathrm{mean}(\delta^2)}

    References:
        Moosavi-Dezfooli et al., Universal adversarial perturbations, CVPR 2017, with the search of Wang et
        al., Neural Cleanse, 2019.

    Deviations:
        The norm is minimised at a fixed success rate, instead of success under a fixed norm, so that labels
        can be compared.
    """

    name: ClassVar[str] = "perturbation_inversion"
    form: ClassVar[str] = "addition"
    prior: ClassVar[Prior] = Prior(0.2, 8.0)
