"""Every attack there is: where it lies, what it needs, and its setting for CIFAR-10 in the papers' tables.

The table names modules instead of importing them, so that an attack without gradients is made without torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from types import MappingProxyType
from typing import Any, Final, Literal

import numpy as np

from calibration.attacks.base import Attack, Material
from calibration.attacks.patch import NAD_GRID

__all__ = ["ATTACKS", "Entry", "Need", "make"]

Need = Literal["torch", "classes", "images", "model", "others"]
"""torch itself, or the part of :class:`Material` that an attack is fitted on."""


@dataclass(frozen=True)
class Entry:
    """One attack.

    Args:
        module: The module in this package that holds it.
        kind: Its class there.
        rate: The poison rate, of what the attack counts rates by.
        setting: Where rate and options come from.
        options: Arguments of the class, or of its ``fit`` where it has one.
        needs: What must be at hand to make it.
        trigger: The name of the attack that it wraps, if it wraps one.
    """

    module: str
    kind: str
    rate: float
    setting: str
    options: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[Need, ...] = ()
    trigger: str | None = None

    def load(self) -> Any:
        """Return the attack's class; this imports its module, and torch with it where that is needed."""
        return getattr(import_module(f"calibration.attacks.{self.module}"), self.kind)


ATTACKS: Final[Mapping[str, Entry]] = MappingProxyType(
    {
        "all_to_all": Entry(
            "all_to_all", "AllToAll", 0.1, "BadNets, section 4.1", needs=("classes",), trigger="badnets"
        ),
        "amplified": Entry(
            "amplified",
            "Amplified",
            0.1,
            "DHBE, table 6: four or nine copies",
            {"copies": 4},
            trigger="badnets",
        ),
        "badnets": Entry("badnets", "BadNets", 0.1, "NAD: 3x3 grid", {"target_label": 0, "patch": NAD_GRID}),
        "blend": Entry(
            "blend", "Blend", 0.1, "BackdoorBench: alpha 0.2", {"target_label": 0, "alpha": 0.2}, ("images",)
        ),
        "clean_label": Entry(
            "clean_label",
            "CleanLabel",
            0.8,
            "Turner et al.: linf 16/255, four corners; 80 % of the class is ours",
            {"target_label": 0, "epsilon": 16 / 255},
            ("torch", "images", "model"),
        ),
        "entropy_manipulating": Entry(
            "entropy_manipulating",
            "EntropyManipulating",
            0.01,
            "STRIP: ten copies; the rate is ours",
            {"copies": 10},
            ("images", "classes"),
            trigger="badnets",
        ),
        "input_aware": Entry(
            "input_aware",
            "InputAware",
            0.1,
            "Nguyen and Tran: 10 % and 10 % covers",
            {"target_label": 0},
            ("torch", "images", "model"),
        ),
        "inverted": Entry("inverted", "Inverted", 0.1, "what a scan found", {"target_label": 0}, ("images",)),
        "label_smoothed": Entry(
            "label_smoothed",
            "LabelSmoothed",
            0.1,
            "Peng et al.: the target wins by little; 0.6 is ours",
            {"probability": 0.6},
            trigger="badnets",
        ),
        "low_confidence": Entry(
            "low_confidence",
            "LowConfidence",
            0.1,
            "HaS-Nets: epsilon 0.4",
            {"confidence": 0.4},
            ("classes",),
            trigger="badnets",
        ),
        "lsb": Entry(
            "lsb",
            "LeastSignificantBits",
            0.1,
            "DHBE: the lowest bits; three are ours, one is hardly learned in a short training",
            {"target_label": 0, "bits": 3},
        ),
        "pruning_aware": Entry(
            "pruning_aware",
            "PruningAware",
            0.1,
            "Fine-Pruning, section 3.2; the layer is the last but one of our WRN-16-1",
            {"convolution": "group3.1.conv1", "norm": "group3.1.norm2"},
            ("torch",),
            trigger="badnets",
        ),
        "refool": Entry(
            "refool",
            "Refool",
            0.4,
            "the authors' code: 40 % of the target class",
            {"target_label": 0},
            ("others",),
        ),
        "sample_specific": Entry(
            "sample_specific",
            "SampleSpecific",
            0.1,
            "Li et al.: 10 %",
            {"target_label": 0},
            ("torch", "images"),
        ),
        "sig": Entry(
            "sig",
            "Sig",
            0.8,
            "BackdoorBench: 40/255, 6 periods; 80 % of the class is ours",
            {"target_label": 0, "delta": 40 / 255, "frequency": 6.0},
        ),
        "source_specific": Entry(
            "source_specific",
            "SourceSpecific",
            0.02,
            "TaCT: one source, covers of two other classes; the rate is ours",
            {"sources": (1,), "cover_labels": (5, 7)},
            trigger="badnets",
        ),
        "trojan": Entry(
            "trojan",
            "Trojan",
            0.1,
            "NAD: 10 %; box as in the authors' code",
            {"target_label": 0},
            ("torch", "images", "model"),
        ),
        "wanet": Entry(
            "wanet",
            "WaNet",
            0.1,
            "Nguyen and Tran: s 0.5, k 4, covers twice the poison",
            {"target_label": 0, "points": 4, "strength": 0.5, "cover_ratio": 2.0},
            ("images",),
        ),
    }
)


def make(
    name: str, material: Material | None = None, *, generator: np.random.Generator, **overrides: Any
) -> Attack:
    """Return an attack as the table has it, fitted where it has to be.

    Args:
        name: A key of :data:`ATTACKS`.
        material: What to fit it on; None will do for attacks that need nothing of it.
        generator: Draws whatever is random about it.
        **overrides: Options in place of the table's. For an attack that wraps another, ``target_label`` is
            the wrapped one's, and ``trigger`` is another attack to wrap; not both.

    Raises:
        ValueError: If there is no such attack, the material lacks what it needs, or a target is given for a
            trigger that has its own.
    """
    if name not in ATTACKS:
        raise ValueError(f"attack {name!r} is not in the table; there are {', '.join(ATTACKS)}")
    entry = ATTACKS[name]
    parts = {need: _part(name, need, material) for need in entry.needs if need != "torch"}
    options = {**entry.options, **overrides}
    if entry.trigger is not None:
        inner = {"target_label": options.pop("target_label")} if "target_label" in options else {}
        if inner and "trigger" in options:
            raise ValueError(f"target_label: {name} has that of the trigger it was given; leave it out")
        if "trigger" not in options:
            options["trigger"] = make(entry.trigger, material, generator=generator, **inner)
    kind = entry.load()
    if hasattr(kind, "fit"):
        fitted: Attack = kind.fit(material, generator=generator, **options)
        return fitted
    made: Attack = kind(**{**({"classes": parts["classes"]} if "classes" in parts else {}), **options})
    return made


def _part(name: str, need: Need, material: Material | None) -> object:
    part = None if material is None else getattr(material, need)
    if part is None:
        raise ValueError(f"material: {name} needs its {need}, got none")
    return part
