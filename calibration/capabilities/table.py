"""Every capability."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from calibration.capabilities.base import Capability
from calibration.capabilities.ibd_psc import COPIES, fit_ibd_psc
from calibration.capabilities.layer_distances import fit_layers
from calibration.capabilities.scale_up import fit_scale_up
from calibration.capabilities.teco_lite import PASSES, fit_teco_lite
from guard.detection.capabilities.scale_up import FACTORS

__all__ = ["CAPABILITIES"]

_ROWS = (
    Capability("layers", "what goes on inside the model", passes=0, needs_labels=False, fit=fit_layers),
    Capability(
        "scale_up",
        "what it says of amplified inputs",
        passes=len(FACTORS),
        needs_labels=False,
        fit=fit_scale_up,
    ),
    Capability(
        "ibd_psc", "what amplified copies of it say", passes=COPIES, needs_labels=False, fit=fit_ibd_psc
    ),
    Capability(
        "teco_lite", "what it says of corrupted inputs", passes=PASSES, needs_labels=False, fit=fit_teco_lite
    ),
)

CAPABILITIES: Final[Mapping[str, Capability]] = MappingProxyType({row.name: row for row in _ROWS})
