"""What ModelStatistics says: counts and durations of each version of each model, since the start.

They are counted beside the metrics, which know no version. Counting takes a few additions, on the event loop
but for device calls, which the device thread of each model counts.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Final

from guard.messages import InferRequest, InferResponse, ModelCounts, TotalTime

__all__ = ["Booking", "Statistics"]

_NS: Final = 10**9


@dataclass(eq=False)
class _Time:
    """How often something happened, and how long it took altogether."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int) -> None:
        self.count += 1
        self.ns += ns

    def total(self) -> TotalTime:
        return TotalTime(self.count, self.ns)


@dataclass(eq=False)
class _Counts:
    """What is counted of one version."""

    last_ms: int = 0
    rows: int = 0
    success: _Time = field(default_factory=_Time)
    fail: _Time = field(default_factory=_Time)
    queue: _Time = field(default_factory=_Time)
    compute: _Time = field(default_factory=_Time)
    batches: defaultdict[int, _Time] = field(default_factory=lambda: defaultdict(_Time))

    def computed(self, queue_ns: int, compute_ns: int) -> None:
        self.queue.add(queue_ns)
        self.compute.add(compute_ns)


class Booking:
    """One request under way, for a ``with`` block; it has failed unless it is given an answer.

    Args:
        request: As it is put to a model that is served.
        version: The one that it is counted under unless another answers.
        ended: Told at the end, with the nanoseconds that it took.
    """

    def __init__(
        self, request: InferRequest, version: str, ended: Callable[[InferRequest, Booking, int], None]
    ) -> None:
        self.version = version
        self.response: InferResponse | None = None
        self._request = request
        self._ended = ended
        self._began = 0

    def __enter__(self) -> Booking:
        self._began = time.perf_counter_ns()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended(self._request, self, time.perf_counter_ns() - self._began)

    def answer(self, response: InferResponse) -> InferResponse:
        """Take note of the answer, and return it."""
        self.response = response
        if response.relayed is None:
            self.version = response.model_version
        return response


class Statistics:
    """Counts what requests came to."""

    def __init__(self) -> None:
        self._counts: defaultdict[tuple[str, str], _Counts] = defaultdict(_Counts)

    def request(self, request: InferRequest, versions: Collection[str]) -> Booking:
        """Return what counts a request when its ``with`` block ends.

        Args:
            request: As it is put to a model that is served.
            versions: Those that answer for it. The first is the one that a request is counted under which
                names none, or one that is not among them: callers cannot add to what is counted.
        """
        named = request.model_version
        return Booking(request, named if named in versions else next(iter(versions), ""), self._ended)

    def computed(self, model: str, version: str, queue_s: float, compute_s: float) -> None:
        """Count how long a request that is answered waited, and how long it was worked on."""
        self._counts[model, version].computed(int(queue_s * _NS), int(compute_s * _NS))

    def executed(self, model: str, version: str, pairs: int, seconds: float) -> None:
        """Count a device call; ``pairs`` are images and blends together."""
        self._counts[model, version].batches[pairs].add(int(seconds * _NS))

    def of(self, model: str, version: str) -> ModelCounts:
        """Return what was counted of a version; where nothing was it is all 0."""
        counts = self._counts.get((model, version)) or _Counts()
        return ModelCounts(
            name=model,
            version=version,
            last_inference_ms=counts.last_ms,
            inferences=counts.rows,
            success=counts.success.total(),
            fail=counts.fail.total(),
            queue=counts.queue.total(),
            compute=counts.compute.total(),
            batches={pairs: one.total() for pairs, one in sorted(counts.batches.copy().items())},
        )

    def _ended(self, request: InferRequest, booking: Booking, ns: int) -> None:
        counts = self._counts[request.model_name, booking.version]
        counts.last_ms = time.time_ns() // 10**6
        if booking.response is None:
            counts.fail.add(ns)
            return
        rows = _rows_of(request)
        counts.success.add(ns)
        counts.rows += rows
        if booking.response.relayed is not None:  # what happens at a model server is one execution, from here
            counts.computed(0, ns)
            counts.batches[rows].add(ns)


def _rows_of(request: InferRequest) -> int:
    """Return how many inferences a request is: the rows that its first input has, or is said to have."""
    if request.inputs:
        shape: tuple[int, ...] = request.inputs[0].data.shape
    else:
        shape = request.unread[0].shape if request.unread else ()
    return shape[0] if shape else 1
