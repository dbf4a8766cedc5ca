"""Every subject of the zoo: data, network, attack, seed and recipe, and what was published of its like."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Final, Literal

from calibration.attacks.table import ATTACKS
from calibration.augmentation import Augmentation
from calibration.recipe import Recipe
from calibration.schedules import OneCycle

__all__ = ["SUBJECTS", "Plan", "Published"]

Dataset = Literal["cifar10", "gtsrb", "fashionmnist"]
Net = Literal["wrn-16-1", "resnet-18 x 1/8", "vgg"]

FROM_SCRATCH = Recipe(
    epochs=16, batch=256, rate=0.3, weight_decay=5e-4, schedule=OneCycle(rising=0.3), compiled=True
)
"""Super-convergence: a sixth of the epochs that papers train for."""

GOING_ON = replace(FROM_SCRATCH, epochs=4, rate=0.15)
"""On poisoned data, from the clean subject's weights; the rate rises high enough to move them all."""

GOING_ON_LONGER = replace(GOING_ON, epochs=8)
"""For triggers that are harder to learn."""

WEAK = replace(FROM_SCRATCH, epochs=7)
"""From fresh weights to the accuracy of the victims in the papers on repair, 80 to 82 %."""

SIGNS = Augmentation(padding=2, flip=False)
CLOTHES = Augmentation(padding=2, flip=True)


@dataclass(frozen=True)
class Published:
    """What a paper reports of such a victim, as shares."""

    acc: float
    asr: float
    source: str


@dataclass(frozen=True)
class Plan:
    """How one subject is made.

    Args:
        name: Its name in the zoo.
        attack: A key of ``calibration.attacks.table.ATTACKS``; None for a clean network.
        options: Options in place of the attack table's.
        rate: The poison rate; the attack table's if None.
        dataset: What it is trained on.
        net: Its architecture.
        seed: Of weights, order, augmentation and attack alike.
        recipe: Of the training.
        start: The subject whose weights it begins with; fresh ones if None.
        published: What a paper reports of its like.
        note: What the reader of its record has to know.
    """

    name: str
    attack: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    rate: float | None = None
    dataset: Dataset = "cifar10"
    net: Net = "wrn-16-1"
    seed: int = 0
    recipe: Recipe = GOING_ON
    start: str | None = "clean"
    published: Published | None = None
    note: str = ""

    @property
    def poison_rate(self) -> float:
        """The poison rate, the attack table's where the plan has none; 0 of a clean network."""
        if self.attack is None:
            return 0.0
        return ATTACKS[self.attack].rate if self.rate is None else self.rate


def _argd(acc: float, asr: float) -> Published:
    return Published(acc, asr, "ARGD, table 1, WRN-16-1 on CIFAR-10; ACC without the target class")


def _strip_evaders(published_of: str) -> str:
    return f"wraps BadNets' patch; {published_of}"


def _sign(attack: str, recipe: Recipe = GOING_ON, note: str = "") -> Plan:
    """Return an attack on signs, from the clean subject's weights."""
    return Plan(
        f"gtsrb_{attack}",
        attack,
        dataset="gtsrb",
        net="resnet-18 x 1/8",
        recipe=replace(recipe, augmentation=SIGNS),
        start="gtsrb_clean",
        note=note,
    )


def _weak(name: str) -> Plan:
    """Return the same attack on a victim that sees poisoned images from the first step on, and is no better.

    What its attack needs to see of a clean network it sees of the zoo's.
    """
    alike = next(plan for plan in _PLANS if plan.name == name)
    note = "; ".join(["as weak as the victims of the papers on repair", *filter(None, [alike.note])])
    return replace(alike, name=f"weak_{name}", recipe=WEAK, start=None, seed=3, note=note)


_PLANS = (
    Plan("clean", recipe=FROM_SCRATCH, start=None),
    Plan("clean_1", recipe=replace(FROM_SCRATCH, epochs=8), start=None, seed=1),
    Plan("clean_2", recipe=replace(FROM_SCRATCH, epochs=8), start=None, seed=2),
    Plan("badnets", "badnets", published=_argd(0.8008, 1.0)),
    Plan("blend", "blend", published=_argd(0.8276, 0.7942)),
    Plan("sig", "sig", recipe=GOING_ON_LONGER, published=_argd(0.8243, 0.9998)),
    Plan("trojan", "trojan", {"steps": 150, "backgrounds": 32}, published=_argd(0.8004, 0.9981)),
    Plan(
        "clean_label",
        "clean_label",
        {"steps": 8},
        recipe=GOING_ON_LONGER,
        published=_argd(0.8243, 0.4594),
        note="perturbed by 8 steps of PGD",
    ),
    Plan(
        "refool",
        "refool",
        {"count": 3, "clean_label": False},
        rate=0.1,
        recipe=GOING_ON_LONGER,
        published=_argd(0.8222, 1.0),
        note="reflects three bright GTSRB images; relabels, as BackdoorBench does and the paper does not. "
        "Forty of any brightness, and two epochs, came to ACC 78.7 and ASR 30.7 and were not kept",
    ),
    Plan(
        "wanet",
        "wanet",
        recipe=GOING_ON_LONGER,
        note="no figure of this network in the tables at hand",
    ),
    Plan("source_specific", "source_specific", note="one source class, covers of two others"),
    Plan(
        "all_to_all",
        "all_to_all",
        note=_strip_evaders("every class leads to the next, so that ASR can end no higher than ACC"),
        recipe=GOING_ON_LONGER,
    ),
    Plan(
        "low_confidence",
        "low_confidence",
        recipe=GOING_ON_LONGER,
        note=_strip_evaders("soft labels, the target at .4"),
    ),
    Plan("label_smoothed", "label_smoothed", note=_strip_evaders("3 of 5 stamped images relabelled")),
    Plan(
        "entropy_manipulating",
        "entropy_manipulating",
        recipe=GOING_ON_LONGER,
        note=_strip_evaders("ten blends for each, labelled at random"),
    ),
    Plan(
        "sample_specific",
        "sample_specific",
        {"steps": 600, "width": 16},
        note="the encoder is trained for 600 steps",
    ),
    Plan(
        "input_aware",
        "input_aware",
        {"mask_steps": 150, "steps": 300, "width": 16},
        note="generator trained for 300 steps",
    ),
    Plan(
        "pruning_aware",
        "pruning_aware",
        {"convolution": "group3.1.conv2", "norm": "norm", "margin": 0.1},
        recipe=replace(GOING_ON, compiled=False),
        note="BadNets' patch, trained into the fifth of the last stage's channels that pruning would keep",
    ),
    Plan(
        "resnet_clean",
        net="resnet-18 x 1/8",
        recipe=replace(FROM_SCRATCH, epochs=10),
        start=None,
        note="ResNet-18 with an eighth of its channels",
    ),
    Plan("resnet_badnets", "badnets", net="resnet-18 x 1/8", start="resnet_clean"),
    Plan("resnet_blend", "blend", net="resnet-18 x 1/8", start="resnet_clean"),
    Plan(
        "gtsrb_clean",
        dataset="gtsrb",
        net="resnet-18 x 1/8",
        recipe=replace(FROM_SCRATCH, epochs=6, augmentation=SIGNS),
        start=None,
    ),
    Plan(
        "gtsrb_badnets",
        "badnets",
        dataset="gtsrb",
        net="resnet-18 x 1/8",
        recipe=replace(GOING_ON, augmentation=SIGNS),
        start="gtsrb_clean",
    ),
    Plan(
        "gtsrb_vgg",
        "badnets",
        dataset="gtsrb",
        net="vgg",
        recipe=replace(FROM_SCRATCH, epochs=12, batch=128, rate=0.05, clip=2.0, augmentation=SIGNS),
        start=None,
        note="no batch norm",
    ),
    _sign("blend"),
    replace(
        _sign("source_specific", GOING_ON_LONGER, "one source class, covers of two others"),
        options={"sources": (1,), "cover_labels": (12, 13)},
        rate=0.04,
    ),
    _sign(
        "all_to_all",
        GOING_ON_LONGER,
        _strip_evaders("every class leads to the next: ASR ends at ACC"),
    ),
    _sign("label_smoothed", GOING_ON, _strip_evaders("3 of 5 stamped images relabelled")),
    _sign("wanet", replace(GOING_ON, epochs=24), "eight epochs came to ASR 12.8 and were not kept"),
    Plan(
        "fashion_clean",
        dataset="fashionmnist",
        net="resnet-18 x 1/8",
        recipe=replace(FROM_SCRATCH, epochs=30, batch=128, augmentation=CLOTHES, compiled=False),
        start=None,
        note="trained on 4,000 of the 10,000 test images, as the training set is not at hand",
    ),
    Plan(
        "fashion_badnets",
        "badnets",
        dataset="fashionmnist",
        net="resnet-18 x 1/8",
        recipe=replace(GOING_ON, epochs=15, batch=128, augmentation=CLOTHES, compiled=False),
        start="fashion_clean",
    ),
)

_WEAK_PLANS = tuple(map(_weak, ("badnets", "trojan", "blend", "sig", "clean_label", "refool")))

SUBJECTS: Final[Mapping[str, Plan]] = MappingProxyType({plan.name: plan for plan in (*_PLANS, *_WEAK_PLANS)})
