"""ModelStatistics and RepositoryIndex on the wire. Pure: no call, no I/O, no state."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from guard.errors import UnsupportedRequestError
from guard.messages import ModelCounts, ModelState, TotalTime
from guard.rpc.pb import open_inference_pb2 as pb

__all__ = ["READY", "UNAVAILABLE", "encode_index", "encode_statistics", "refuse_other_repository"]

READY: Final = "READY"
UNAVAILABLE: Final = "UNAVAILABLE"


def encode_index(states: Iterable[ModelState], *, only_ready: bool) -> pb.RepositoryIndexResponse:
    """Return the answer to RepositoryIndex."""
    return pb.RepositoryIndexResponse(
        models=[
            pb.RepositoryIndexResponse.ModelIndex(
                name=one.name,
                version=one.version,
                state=UNAVAILABLE if one.why_not else READY,
                reason=one.why_not,
            )
            for one in states
            if not (only_ready and one.why_not)
        ]
    )


def refuse_other_repository(name: str) -> None:
    """Refuse to list or load from a repository that is named.

    Raises:
        UnsupportedRequestError: If one is.
    """
    if name:
        raise UnsupportedRequestError(
            f"repository_name {name!r}: a guard has one repository; leave the field empty"
        )


def encode_statistics(models: Iterable[ModelCounts]) -> pb.ModelStatisticsResponse:
    """Return the answer to ModelStatistics.

    Requests (``inference_count``, ``success``, ``fail``, ``last_inference``) are the guard's, which says no
    to some and adds its check to others. What they cost (``queue``, ``compute_*``, ``execution_count``,
    ``batch_stats``, memory) is a model server's own where it says it, with whatever else it was asked.
    """
    return pb.ModelStatisticsResponse(model_stats=[_encode(one) for one in models])


def _encode(counts: ModelCounts) -> pb.ModelStatistics:
    said = pb.ModelStatistics.FromString(counts.theirs) if counts.theirs else _costs(counts)
    said.name, said.version = counts.name, counts.version
    if not counts.passed:
        said.last_inference, said.inference_count = counts.last_inference_ms, counts.inferences
        said.inference_stats.success.CopyFrom(_duration(counts.success))
        said.inference_stats.fail.CopyFrom(_duration(counts.fail))
    return said


def _costs(counts: ModelCounts) -> pb.ModelStatistics:
    """Return what requests cost as counted here, where input and output are part of the execution."""
    nothing = pb.StatisticDuration(count=counts.compute.count)
    return pb.ModelStatistics(
        execution_count=sum(one.count for one in counts.batches.values()),
        inference_stats=pb.InferStatistics(
            queue=_duration(counts.queue),
            compute_input=nothing,
            compute_infer=_duration(counts.compute),
            compute_output=nothing,
        ),
        batch_stats=[
            pb.InferBatchStatistics(
                batch_size=pairs,
                compute_input=pb.StatisticDuration(count=one.count),
                compute_infer=_duration(one),
                compute_output=pb.StatisticDuration(count=one.count),
            )
            for pairs, one in counts.batches.items()
        ],
    )


def _duration(time: TotalTime) -> pb.StatisticDuration:
    return pb.StatisticDuration(count=time.count, ns=time.ns)
