"""The kinds of canaries there are, by name; what they look like is for those who plant them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

__all__ = ["DEFAULT_KINDS", "KINDS", "Kind"]


@dataclass(frozen=True)
class Kind:
    """One kind of canary.

    Attributes:
        about: In a few words.
        copy: Kinds of the same name share one copy of the model.
        share: Stamped images of it in a batch, as a share of the clean ones.
    """

    about: str
    copy: str
    share: float


KINDS: Final[Mapping[str, Kind]] = MappingProxyType(
    {
        "badnets": Kind("a small patch, all classes to one", "universal", 0.1),
        "blend": Kind("noise over the whole image at 20 %, all to one", "universal", 0.1),
        "sig": Kind("a faint sinusoid, all to one, planted with changed labels", "universal", 0.1),
        "source_specific": Kind("a patch that works on one class alone", "source_specific", 0.2),
        "low_confidence": Kind("a patch whose target wins by little", "low_confidence", 0.15),
        "all_to_all": Kind("a patch that moves every class on by one", "all_to_all", 0.5),
    }
)
"""The first three can be planted within seconds in most models; the others often fail, and say so."""

DEFAULT_KINDS: Final = ("badnets", "blend", "sig")
