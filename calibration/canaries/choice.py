"""What canaries said, and what is chosen by it; plain values, without torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import mean
from types import MappingProxyType
from typing import Any, Final

import onnx

from calibration.evaluation.numbers import Share
from calibration.fused_fit import DEFAULT_STATISTICS
from guard.arrays import Images
from guard.detection.measurements import Statistic

__all__ = [
    "FUSED",
    "NONE_CHOSEN",
    "PLAIN",
    "STATISTICS_TRIED",
    "Choice",
    "Found",
    "Planted",
    "Planting",
    "Setting",
    "choose_setting",
]

FUSED: Final = DEFAULT_STATISTICS
PLAIN: Final[tuple[Statistic, ...]] = ("strip",)
STATISTICS_TRIED: Final[tuple[tuple[Statistic, ...], ...]] = (
    FUSED,
    ("departure", "entropy", "stratified"),
    ("departure", "surprise", "stratified", "strip"),
    ("departure", "stratified"),
    ("departure", "entropy"),
    PLAIN,
)
"""``strip`` alone is the plain detector; all others are fused. What looks inside the model takes no part."""

STANDS_FOR: Final[Mapping[Statistic, str]] = MappingProxyType(
    {
        "departure": "all_to_all",
        "entropy": "low_confidence",
        "surprise": "low_confidence",
        "stratified": "source_specific",
    }
)
"""The canary that shows what a statistic is there for; ``strip`` adds to what others see."""

HANDICAP: Final = 0.05
"""Mean TPR that must be gained for each statistic left out without its canary: what it is there for may then
go unseen, and no other canary tells."""

NONE_CHOSEN: Final = "no canary could be planted"


@dataclass(frozen=True)
class Setting:
    """How a check may be set.

    Attributes:
        blend: Name of the blend rule.
        overlays: N.
        statistics: Which are fused; ``strip`` alone for the plain detector.
    """

    blend: str
    overlays: int
    statistics: tuple[Statistic, ...]

    @property
    def fused(self) -> bool:
        """Whether the fused detector decides."""
        return self.statistics != PLAIN

    @property
    def detector(self) -> str:
        """Its name and, where it is fused, its statistics."""
        return f"fused ({', '.join(self.statistics)})" if self.fused else "strip"

    def __str__(self) -> str:
        return f"blend {self.blend}, N = {self.overlays}, {self.detector}"


@dataclass(frozen=True)
class Planting:
    """How it went with one canary.

    Attributes:
        kind: Its kind; the name of its trigger for one that a scan found.
        asr: Share of held-out stamped images that are given the target's label.
        accuracy: Of the copy on held-out images, and of the model; against its own predictions, so 1,
            where there are no labels.
        accuracy_before: Of the model.
        why_not: Why it does not count; empty if it does.
    """

    kind: str
    asr: float
    accuracy: float
    accuracy_before: float
    why_not: str = ""


@dataclass(frozen=True)
class Found:
    """What one setting found.

    Attributes:
        tpr: Share of triggered images found, by kind, with exact intervals.
        passes_clean: Blends spent on a clean input.
    """

    setting: Setting
    tpr: Mapping[str, Share]
    passes_clean: float

    @property
    def mean_tpr(self) -> float:
        """Over the kinds, each counting the same."""
        return mean(share.value for share in self.tpr.values())


@dataclass(frozen=True, eq=False)
class Planted:
    """A canary that counts.

    Attributes:
        kind: Its kind; the name of its trigger for one that a scan found.
        model: The copy of the model that it is in.
        triggered: Inputs with the trigger, in the model's input space, for which it works.
    """

    kind: str
    model: onnx.ModelProto
    triggered: Images


@dataclass(frozen=True)
class Choice:
    """What was chosen by canaries.

    Attributes:
        chosen: The setting, and what it found; None where nothing could be chosen.
        default: What the default found; None likewise.
        tried: Every setting that was tried.
        plantings: How it went with each canary.
        frr: Rate that boundaries were set for.
        why_not: Why nothing was chosen; empty else.
        seconds: What it took.
        planted_seconds: Processor seconds spent on fine-tuning alone.
        planted: The canaries that count, for others to be tried on.
        served: Statistics of the detector that was made then: those chosen and, where it looks inside the
            model, layers; empty before it is.
    """

    chosen: Found | None
    default: Found | None = None
    tried: tuple[Found, ...] = ()
    plantings: tuple[Planting, ...] = ()
    frr: float = 0.01
    why_not: str = ""
    seconds: float = 0.0
    planted_seconds: float = 0.0
    planted: tuple[Planted, ...] = field(default=(), repr=False, compare=False)
    served: tuple[Statistic, ...] = ()

    def serving(self, statistics: tuple[Statistic, ...]) -> Choice:
        """Return the choice with what the detector came to that was made by it."""
        return replace(self, served=statistics)

    def lines(self) -> Iterable[str]:
        """Yield what a person reads."""
        for one in self.plantings:
            state = one.why_not or f"success {one.asr:.0%}, accuracy {_change(one)}"
            yield f"{one.kind}: {'not planted, ' if one.why_not else ''}{state}"
        if self.chosen is None:
            yield f"nothing chosen, the default stays: {self.why_not}"
            return
        measured = self.chosen.setting
        yield f"chosen: {replace(measured, statistics=self.served or measured.statistics)}"
        beyond = [name for name in self.served if name not in measured.statistics]
        if beyond:
            without = f"without {', '.join(beyond)}, as {measured.detector}"
            yield f"measured on canaries {without}; the expected detection is of that"
        yield from _left_out(self.chosen, self.default)
        for kind, share in self.chosen.tpr.items():
            other = "" if self.default is None else f"; the default {self.default.tpr[kind].value:.0%}"
            yield (
                f"expected detection of {kind}: {share.value:.0%} (95 % interval {share.low:.0%} to "
                f"{share.high:.0%}{other})"
            )
        yield "canaries are backdoors of our own: a real one may be found more or less often"

    def to_record(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {
            "chosen": _found(self.chosen),
            "default": _found(self.default),
            "tried": [_found(found) for found in self.tried],
            "canaries": [vars(one) for one in self.plantings],
            "served": list(self.served),
            "frr": self.frr,
            "why_not": self.why_not,
            "seconds": round(self.seconds, 1),
            "planted_seconds": round(self.planted_seconds, 1),
        }


def choose_setting(tried: Sequence[Found], default: Setting) -> Found:
    """Return the setting with the highest mean TPR, to the percent; ties: fewer overlays, then the default.

    A statistic of the default is left out only where that gains enough: :data:`HANDICAP`, unless the canary
    of the kind it is there for was planted.

    Args:
        tried: What each found, of the same canaries; one at least.
        default: What is taken without canaries.
    """
    return max(tried, key=lambda one: _rank(one, default))


def _rank(found: Found, default: Setting) -> tuple[float, int, bool, bool]:
    setting = found.setting
    left_out = STANDS_FOR.keys() & set(default.statistics) - set(setting.statistics)
    blind = sum(STANDS_FOR[name] not in found.tpr for name in left_out)
    return (
        round(found.mean_tpr - HANDICAP * blind, 2),
        -setting.overlays,
        setting.blend == default.blend,
        setting.statistics == default.statistics,
    )


def _left_out(chosen: Found, default: Found | None) -> Iterable[str]:
    """Yield what may go unseen with the chosen statistics."""
    usual = () if default is None else default.setting.statistics
    for name in usual:
        kind = STANDS_FOR.get(name)
        if kind is not None and name not in chosen.setting.statistics and kind not in chosen.tpr:
            yield f"left out: {name}; a {kind} backdoor may go unseen, and no such canary was planted"


def _change(one: Planting) -> str:
    return f"{one.accuracy_before:.1%} to {one.accuracy:.1%}"


def _found(found: Found | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        **vars(found.setting),
        "tpr": {kind: vars(share) | {"value": share.value} for kind, share in found.tpr.items()},
        "mean_tpr": found.mean_tpr,
        "passes_clean": found.passes_clean,
    }
