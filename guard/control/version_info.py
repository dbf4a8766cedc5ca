"""What an operator is told of a model that is loaded."""

from __future__ import annotations

from guard.control.api import VersionInfo
from guard.runtime.loader import LoadedModel

__all__ = ["version_info"]


def version_info(model: LoadedModel) -> VersionInfo:
    """Return what an operator is told of a model that is loaded."""
    profile = model.profile
    bits = profile.boundary.boundary_bits
    return VersionInfo(
        version=model.version,
        digest=model.digest,
        model_sha256=model.profile.model_sha256,
        boundary_bits=bits,
        certified_frr=profile.promise.certified_frr,
        loaded_at=model.loaded_at,
        detector=profile.check.detector,
        boundary=-bits if profile.fused is None else profile.fused.boundary.boundary,
    )
