"""What is run: repairs, each with options that a table asks for, and the order of all runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Literal

from calibration.repair.base import Repair
from calibration.repair.table import REPAIRS

__all__ = ["IMAGES", "OTHERS", "STRONG", "WEAK", "Method", "Run", "find_method", "plan"]

Trigger = Literal["reversed", "original"]

ATTACKS: Final = ("badnets", "trojan", "blend", "sig", "clean_label", "refool")
STRONG: Final = ATTACKS
WEAK: Final = tuple(f"weak_{name}" for name in ATTACKS)
IMAGES: Final = 2500
"""5 % of CIFAR-10's 50,000 training images, as in the papers."""


@dataclass(frozen=True)
class Method:
    """A repair with the options it is run with.

    Args:
        repair: Its name in the table of repairs.
        variant: What tells it from the same repair with other options; part of the record's file name.
        options: In place of the defaults.
        trigger: Where its trigger comes from; None gives it none.
    """

    repair: str
    variant: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    trigger: Trigger | None = None

    @property
    def name(self) -> str:
        """``mcr``, or ``mcr-t3``."""
        return f"{self.repair}-{self.variant}" if self.variant else self.repair

    @property
    def needs_images(self) -> bool:
        """Whether it learns from clean images at all."""
        return bool(REPAIRS[self.repair].needs)

    def make(self) -> Repair:
        """Return the repair."""
        return REPAIRS[self.repair].make(**self.options)


@dataclass(frozen=True)
class Run:
    """One line of the plan.

    Args:
        victim: A subject of the zoo.
        method: The name of a method.
        images: Clean images, held-back ones among them; 0 for a repair that takes none.
    """

    victim: str
    method: str
    images: int = IMAGES


_VARIANTS: Final[Mapping[str, Method]] = MappingProxyType(
    {
        method.name: method
        for method in (
            Method("mcr", "t3", {"t": 0.3, "endpoint_rate": 0.1}),
            Method("guided_unlearning", "reversed", trigger="reversed"),
            Method("unlearning", "reversed", trigger="reversed"),
            Method("unlearning", "original", trigger="original"),
            Method("unlearning", "clean", {"share": 0.0}),
        )
    }
)


def find_method(name: str) -> Method:
    """Return a method by name; a repair that needs a trigger gets the one that a scan reversed.

    Raises:
        ValueError: If there is neither such a variant nor such a repair.
    """
    if name in _VARIANTS:
        return _VARIANTS[name]
    if name not in REPAIRS:
        raise ValueError(f"method {name!r} is not known; there are {', '.join([*REPAIRS, *_VARIANTS])}")
    return Method(name, trigger="reversed" if "trigger" in REPAIRS[name].needs else None)


FIRST = ("fine_tuning", "nad", "argd", "fine_pruning")
QUICK = ("unlearning-original", "fst", "unlearning-reversed")
SLOW = ("mcr-t3", "dhbe", "ft_sam", "i_bau", "sau", "mcr")
OF_A_TRIGGER = tuple(f"unlearning-{variant}" for variant in ("reversed", "original", "clean"))
OTHERS = ("resnet_badnets", "gtsrb_badnets", "gtsrb_vgg", "pruning_aware")
GUIDED = ("guided_unlearning",)
GTSRB_TRAINING = 15675
"""Images that gtsrb_badnets was trained on; distillation is given a share of them."""


def plan() -> Iterator[Run]:
    """Yield every run that the tables are made of, the most telling first."""
    yield from _dedupe(_all())


def _all() -> Iterator[Run]:
    for methods in (FIRST, QUICK):
        yield from _each(WEAK, methods)
    yield from _each(("gtsrb_badnets", "badnets", "trojan"), OF_A_TRIGGER)
    yield from _each(("badnets", "pruning_aware"), ("fine_tuning", "fine_pruning"))
    yield from _each(WEAK, ("mcr-t3",))
    yield from _each(("badnets", "trojan"), ("dhbe",))
    for share in (0.06, 0.2):
        yield Run("gtsrb_badnets", "distillation", round(share * GTSRB_TRAINING))
    for name in SLOW[1:-1]:
        yield from _each(WEAK, (name,))
    for group in (FIRST, QUICK, SLOW[:-1]):
        yield from _each(STRONG, group)
    for images in (500, 5000, 10000):
        for method in ("argd", "nad", "fine_tuning"):
            yield from _each(WEAK, (method,), images)
    yield from _each(OTHERS, (*FIRST, *QUICK, *SLOW))
    yield from _each((*WEAK, *STRONG), ("mcr",))
    for images in (IMAGES, 500, 5000, 10000):
        yield from _each((*WEAK, *STRONG, *OTHERS) if images == IMAGES else WEAK, GUIDED, images)


def _each(victims: tuple[str, ...], methods: tuple[str, ...], images: int = IMAGES) -> Iterator[Run]:
    for victim in victims:
        for name in methods:
            known = name in _VARIANTS or name in REPAIRS
            if known:
                yield Run(victim, name, images if find_method(name).needs_images else 0)


def _dedupe(runs: Iterator[Run]) -> Iterator[Run]:
    yield from dict.fromkeys(runs)
