"""Figures of the papers that the tables stand beside: ASR and accuracy, in percent.

ARGD's and NAD's accuracy leaves the target class out; the other papers' does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

__all__ = [
    "AMPLIFIED",
    "ARGD_AVERAGES",
    "ARGD_BY_ATTACK",
    "ARGD_BY_SHARE",
    "DISTILLED",
    "FINE_PRUNED",
    "PATCHED",
    "Pair",
]


@dataclass(frozen=True)
class Pair:
    """Attack success and accuracy."""

    asr: float
    acc: float


def _pairs(**pairs: tuple[float, float]) -> Mapping[str, Pair]:
    return MappingProxyType({name: Pair(*pair) for name, pair in pairs.items()})


ARGD_AVERAGES: Final = _pairs(
    none=(87.53, 81.66),
    fine_tuning=(6.29, 79.31),
    mcr=(17.49, 79.10),
    nad=(5.70, 79.04),
    argd=(2.41, 80.38),
)
"""ARGD, table 1, average of six attacks; 5 % of CIFAR-10, WRN-16-1; MCR at t = .3."""

ARGD_BY_ATTACK: Final[Mapping[str, tuple[Pair, Pair]]] = MappingProxyType(
    {
        "badnets": (Pair(100, 80.08), Pair(2.10, 79.81)),
        "trojan": (Pair(99.81, 80.04), Pair(1.97, 79.60)),
        "blend": (Pair(79.42, 82.76), Pair(0.12, 80.47)),
        "sig": (Pair(99.98, 82.43), Pair(1.83, 80.56)),
        "clean_label": (Pair(45.94, 82.43), Pair(5.32, 80.18)),
        "refool": (Pair(100, 82.22), Pair(3.12, 81.67)),
    }
)
"""ARGD, table 1: before, and after ARGD."""

ARGD_BY_SHARE: Final[Mapping[str, Mapping[int, Pair]]] = MappingProxyType(
    {
        "nad": {
            500: Pair(6.38, 64.06),
            2500: Pair(5.70, 79.04),
            5000: Pair(5.18, 80.69),
            10000: Pair(3.91, 82.31),
        },
        "argd": {
            500: Pair(3.58, 76.57),
            2500: Pair(2.41, 80.38),
            5000: Pair(3.01, 81.21),
            10000: Pair(2.64, 82.52),
        },
    }
)
"""ARGD, table 2, by clean images of CIFAR-10: 1, 5, 10 and 20 %."""

AMPLIFIED: Final[Mapping[str, tuple[float, float, float]]] = MappingProxyType(
    {
        "fine_tuning": (2.24, 31.14, 60.50),
        "fine_pruning": (29.58, 85.45, 99.32),
        "nad": (3.57, 40.11, 62.24),
        "unlearning-reversed": (8.66, 39.44, 72.12),
        "gdm": (0.41, 3.32, 11.63),
        "dhbe": (0.05, 0.28, 1.20),
    }
)
"""DHBE, table 6: mean ASR of one, four and nine copies; ResNet-18 on CIFAR-10."""

FINE_PRUNED: Final[Mapping[str, Mapping[str, tuple[Pair, Pair, Pair]]]] = MappingProxyType(
    {
        "baseline attack": {
            "face": (Pair(100, 97.8), Pair(0, 97.8), Pair(0, 97.8)),
            "speech": (Pair(77.0, 99.0), Pair(43.5, 99.0), Pair(2.0, 98.8)),
            "traffic signs": (Pair(99.1, 84.9), Pair(92.1, 85.7), Pair(28.8, 87.3)),
        },
        "pruning-aware attack": {
            "face": (Pair(99.8, 97.4), Pair(0, 97.8), Pair(0, 97.7)),
            "speech": (Pair(78.0, 98.8), Pair(52.0, 98.8), Pair(0, 98.6)),
            "traffic signs": (Pair(89.9, 82.0), Pair(41.9, 87.2), Pair(36.6, 87.4)),
        },
    }
)
"""Liu et al., Fine-Pruning, RAID 2018: without defence, fine-tuned, fine-pruned."""

PATCHED: Final[Mapping[str, tuple[Pair, Pair, Pair, Pair]]] = MappingProxyType(
    {
        "MNIST": (Pair(99.90, 98.54), Pair(0.57, 97.69), Pair(0.29, 97.77), Pair(93.37, 97.38)),
        "GTSRB": (Pair(97.40, 96.51), Pair(0.14, 92.91), Pair(0.19, 90.06), Pair(95.69, 92.02)),
        "YouTube Face": (Pair(97.20, 97.50), Pair(6.70, 97.90), Pair(0, 97.90), Pair(95.10, 97.80)),
        "PubFig": (Pair(97.03, 95.69), Pair(6.09, 97.38), Pair(1.41, 97.38), Pair(93.30, 97.69)),
    }
)
"""Neural Cleanse, table V: before; unlearned by reversed trigger, by the original one, by clean images."""

DISTILLED: Final = (
    "MNIST: accuracy on clean / poisoned images 98.9 / 4.9 → 98.2 / 98.2 (6 %), 98.8 / 98.8 (20 %); GTSRB: "
    "94.8 / 88.7 → 90.7 / 90.3 (13 %), 92.1 / 91.8 (30 %)"
)
"""Yoshida and Fujino, AISec 2020: by share of clean images, before fine-tuning."""
