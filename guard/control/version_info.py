"""What an operator is told of a model that is loaded."""

from __future__ import annotations

from guard.artifact.detector import boundaries_of, score_of
from guard.control.api import OpinionInfo, VersionInfo
from guard.runtime.loader import LoadedModel

__all__ = ["version_info"]


def version_info(model: LoadedModel) -> VersionInfo:
    """Return what an operator is told of a model that is loaded."""
    profile = model.profile
    (_, lowest), *higher = boundaries_of(profile)
    block = higher[0][1] if higher else None
    return VersionInfo(
        version=model.version,
        digest=model.digest,
        model_sha256=model.profile.model_sha256,
        boundary_bits=profile.boundary.boundary_bits,
        certified_frr=lowest.certified_frr,
        loaded_at=model.loaded_at,
        detector=profile.check.detector,
        boundary=score_of(lowest),
        block_boundary=None if block is None else score_of(block),
        block_certified_frr=None if block is None else block.certified_frr,
        second_opinions=tuple(OpinionInfo(*told) for told in model.opinions.told),
    )
