"""Neural Cleanse: the smallest patch for each label, all labels at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from calibration.scan.evidence import Prior
from calibration.scan.label_scan import LabelScan

__all__ = ["NeuralCleanse"]


@dataclass(frozen=True)
class NeuralCleanse(LabelScan):
    r"""Looks for a label that a far smaller patch leads to than to the others.

    .. math:: \min_{m, p} \; \mathbb{E}_x \, \ell\bigl(t, f((1 - m) \odot x + m \odot p)\bigr) + \lambda
    \lVert m \rVert_1

    for each label t; see :class:`LabelScan` for the options and ``evidence`` for the judgement.

    Examples:
        >>> NeuralCleanse(labels=(0, 3), steps=100).form
        'patch'

    References:
        Wang et al., Neural Cleanse: identifying and mitigating backdoor attacks in neural networks, IEEE S&P
        2019.

    Deviations:
        All labels share every call of the model, and of many labels only the likeliest are searched to the
        end. The index of scaled median deviations is reported but does not decide; see ``evidence``. A label
        is flagged only if a second search finds it again and the trigger works on held images.
    """

    name: ClassVar[str] = "neural_cleanse"
    form: ClassVar[str] = "patch"
    prior: ClassVar[Prior] = Prior(0.2, 8.0)
