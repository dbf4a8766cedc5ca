"""Every repair there is: where it lies, what it needs, what it is good for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from types import MappingProxyType
from typing import Any, Final, Literal

from calibration.annotated import require_fitting
from calibration.repair.base import Repair

__all__ = ["DEFAULT_METHOD", "REPAIRS", "Entry", "Need"]

Need = Literal["images", "labels", "trigger", "distribution", "poisoned set"]

DEFAULT_METHOD: Final = "guided_unlearning"
"""What ``guard repair`` does unless it is told otherwise."""


@dataclass(frozen=True)
class Entry:
    """One repair.

    Args:
        module: The module in this package that holds it.
        kind: Its class there.
        needs: What it cannot do without, beside the model: clean images, their labels, a trigger that leads
            to the target label, a distribution of such triggers, the training set that may be poisoned.
        does: What it does, in a few words.
    """

    module: str
    kind: str
    needs: tuple[Need, ...]
    does: str

    def load(self) -> Any:
        """Return the repair's class; this imports its module."""
        return getattr(import_module(f"calibration.repair.{self.module}"), self.kind)

    def make(self, **options: object) -> Repair:
        """Return the repair with options in place of its own defaults.

        Raises:
            ValueError: If there is no such option, or its value is of another type or out of its range.
        """
        kind = self.load()
        require_fitting(kind, options)
        repair: Repair = kind(**options)
        return repair


REPAIRS: Final[Mapping[str, Entry]] = MappingProxyType(
    {
        "fine_tuning": Entry(
            "fine_tuning", "FineTuning", ("images", "labels"), "trains on clean images at a high rate"
        ),
        "fine_pruning": Entry(
            "fine_pruning",
            "FinePruning",
            ("images", "labels"),
            "takes out the channels that clean images leave quiet, then trains the rest",
        ),
        "nad": Entry(
            "nad",
            "NeuralAttentionDistillation",
            ("images", "labels"),
            "draws it to where a fine-tuned copy of it looks",
        ),
        "argd": Entry(
            "argd",
            "AttentionRelationGraphDistillation",
            ("images", "labels"),
            "draws it to how a fine-tuned copy's attention hangs together",
        ),
        "mcr": Entry(
            "mcr",
            "MCR",
            ("images", "labels"),
            "joins it to a fine-tuned copy by a curve of accurate networks and takes one of them",
        ),
        "dhbe": Entry(
            "dhbe",
            "DataFreeErasing",
            (),
            "teaches a copy to see through invented triggers on invented images",
        ),
        "anti_backdoor_learning": Entry(
            "anti_backdoor_learning",
            "AntiBackdoorLearning",
            ("poisoned set",),
            "trains a fresh network on the poisoned set, less what is learned too easily",
        ),
        "unlearning": Entry(
            "unlearning",
            "Unlearning",
            ("images", "labels", "trigger"),
            "trains on clean images, some with the trigger and their true labels",
        ),
        "distillation": Entry(
            "distillation",
            "Distillation",
            ("images",),
            "teaches a fresh network what the old one says of clean images",
        ),
        "gdm": Entry(
            "gdm",
            "GenerativeModelling",
            ("images", "labels", "distribution"),
            "trains on clean images, a few with patches from a learned distribution",
        ),
        "fst": Entry(
            "fst",
            "FeatureShiftTuning",
            ("images", "labels"),
            "trains a fresh classifier that is kept away from the old one, so that features move",
        ),
        "ft_sam": Entry(
            "ft_sam",
            "SharpnessAwareFineTuning",
            ("images", "labels"),
            "trains on clean images where the loss is highest near by, which moves large weights",
        ),
        "i_bau": Entry(
            "i_bau",
            "ImplicitUnlearning",
            ("images", "labels"),
            "finds one perturbation that misleads on all images, and unlearns it",
        ),
        "guided_unlearning": Entry(
            "guided_unlearning",
            "GuidedUnlearning",
            ("images",),
            "finds what moves it most, and unlearns that, taught by itself",
        ),
        "sau": Entry(
            "sau",
            "SharedAdversarialUnlearning",
            ("images", "labels"),
            "unlearns perturbations that mislead the old network and the new one alike",
        ),
    }
)
