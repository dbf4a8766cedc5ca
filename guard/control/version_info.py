"""What an operator is told of a model that is loaded."""

from __future__ import annotations

from guard.control.api import VersionInfo
from guard.runtime.loader import LoadedModel

__all__ = ["version_info"]


def version_info(model: LoadedModel) -> VersionInfo:
    """Return what an operator is told of a model that is loaded."""
    boundary = model.profile.boundary
    return VersionInfo(
        version=model.version,
        digest=model.digest,
        model_sha256=model.profile.model_sha256,
        boundary_bits=boundary.boundary_bits,
        certified_frr=boundary.certified_frr,
        loaded_at=model.loaded_at,
    )
