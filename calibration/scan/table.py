"""Every scanner there is: where it lies, what it needs, what it looks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from types import MappingProxyType
from typing import Any, Final, Literal

from calibration.scan.base import Scanner

__all__ = ["SCANNERS", "Entry", "Need"]

Need = Literal["images", "training set"]


@dataclass(frozen=True)
class Entry:
    """One scanner.

    Args:
        module: The module in this package that holds it.
        kind: Its class there.
        needs: What it looks at.
        finds: What it is for, in a few words.
        usual: Whether it runs where nothing else is asked for and its needs are met.
        flags: Its options that mean what a flag of the scan means, and are set by it: ``alpha`` by
            ``--alpha``, ``labels`` by ``--targets``, ``steps`` by ``--steps``.
    """

    module: str
    kind: str
    needs: Need
    finds: str
    usual: bool = True
    flags: tuple[str, ...] = ("alpha", "labels", "steps")

    def load(self) -> Any:
        """Return the scanner's class; this imports its module."""
        return getattr(import_module(f"calibration.scan.{self.module}"), self.kind)

    def make(self, **options: object) -> Scanner:
        """Return the scanner with options in place of its own defaults.

        Raises:
            ValueError: If an option is out of its range.
            TypeError: If there is no such option.
        """
        scanner: Scanner = self.load()(**options)
        return scanner


SCANNERS: Final[Mapping[str, Entry]] = MappingProxyType(
    {
        "neural_cleanse": Entry(
            "neural_cleanse", "NeuralCleanse", "images", "patches, also trained ones and faint ones"
        ),
        "wave_inversion": Entry(
            "wave_inversion",
            "WaveInversion",
            "images",
            "patterns blended over the whole image, several patches",
        ),
        "warp_inversion": Entry("warp_inversion", "WarpInversion", "images", "warps"),
        "pair_scan": Entry(
            "pair_scan",
            "PairScan",
            "images",
            "patches that work on one class, or send each class to another",
            flags=(),
        ),
        "perturbation_inversion": Entry(
            "perturbation_inversion",
            "PerturbationInversion",
            "images",
            "faint noise over the image",
            usual=False,
        ),
        "trigger_distribution": Entry(
            "trigger_distribution",
            "TriggerDistribution",
            "images",
            "many small patches that lead to one label, for a repair to unlearn",
            usual=False,
            flags=("labels",),
        ),
        "activation_clustering": Entry(
            "activation_clustering",
            "ActivationClustering",
            "training set",
            "poisoned training images",
            flags=("alpha",),
        ),
        "spectral_signatures": Entry(
            "spectral_signatures",
            "SpectralSignatures",
            "training set",
            "poisoned training images",
            flags=("alpha",),
        ),
    }
)
