"""What a model server has counted of its model."""

from __future__ import annotations

from collections.abc import Mapping

from guard.rpc.pb import open_inference_pb2 as pb
from guard.upstream.ensembles import ask_if_served
from guard.upstream.link import Link

__all__ = ["statistics_of"]


async def statistics_of(link: Link, version: str = "") -> Mapping[str, bytes]:
    """Return the server's ModelStatistics of each version as bytes; empty where it has none.

    Args:
        link: To the server.
        version: Of its model; empty for all.

    Raises:
        UpstreamStatusError: If the server says no.
        UpstreamError: If it cannot be asked.
    """
    asked = pb.ModelStatisticsRequest(name=link.address.model, version=version)
    answer = await ask_if_served(link, "ModelStatistics", asked)
    return {} if answer is None else {one.version: one.SerializeToString() for one in answer.model_stats}
