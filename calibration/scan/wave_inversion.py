"""Triggers that lie over the whole image: the perturbation with the fewest waves for each label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from calibration.scan.evidence import Prior
from calibration.scan.label_scan import LabelScan

__all__ = ["WaveInversion"]


@dataclass(frozen=True)
class WaveInversion(LabelScan):
    r"""Looks for a label that a perturbation with far fewer waves leads to than to the others.

    .. math:: \min_{a} \; \mathbb{E}_x \, \ell\bigl(t, f(\mathrm{clip}(x + C^{-1} a))\bigr)
              + \lambda \sum_{uv} \lVert a_{uv} \rVert_2

    with :math:`C` the orthonormal cosine transform. It finds blended patterns and marks in several places,
    which no small patch imitates.

    References:
        The search is that of Wang et al., Neural Cleanse, 2019, with frequencies in place of pixels. That
        triggers stand out there: Zeng et al., Rethinking the backdoor attacks' triggers: a frequency
        perspective, ICCV 2021.

    Deviations:
        The combination is ours.
    """

    name: ClassVar[str] = "wave_inversion"
    form: ClassVar[str] = "waves"
    prior: ClassVar[Prior] = Prior(0.3, 8.0)
