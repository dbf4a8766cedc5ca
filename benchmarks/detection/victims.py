"""Who is asked: a network of the zoo with its own trigger, or with more copies of its patch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.zoo.subjects import load_subject
from calibration.attacks.amplified import amplified
from calibration.attacks.base import Attack

__all__ = ["VICTIMS", "Victim", "load_victim"]

ATTACKS = (
    "badnets", "blend", "sig", "clean_label", "trojan", "wanet", "sample_specific", "source_specific",
    "all_to_all", "label_smoothed", "low_confidence", "entropy_manipulating", "refool",
)  # fmt: skip
VICTIMS = (
    *ATTACKS,
    "badnets x4", "badnets x9", "trojan x4",
    "resnet_badnets", "resnet_blend", "clean", "clean_1", "resnet_clean",
    "gtsrb_badnets", "gtsrb_vgg", "gtsrb_blend", "gtsrb_wanet", "gtsrb_source_specific", "gtsrb_all_to_all",
    "gtsrb_label_smoothed", "gtsrb_clean",
    "fashion_badnets", "fashion_clean",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Victim:
    """One row of the tables.

    Attributes:
        name: Its name.
        network: The zoo's name of its network.
        model: Its ONNX file.
        attack: What stamps; None for a clean network.
        data: Name of its data set.
    """

    name: str
    network: str
    model: Path
    attack: Attack | None
    data: str


def load_victim(name: str) -> Victim:
    """Return a victim; ``NETWORK xN`` is a network of the zoo with N copies of its patch."""
    network, _, copies = name.partition(" x")
    subject = load_subject(network)
    attack = subject.attack
    if copies and attack is not None:
        attack = amplified(attack, int(copies))
    return Victim(name, network, subject.model, attack, subject.record["data"]["name"])
