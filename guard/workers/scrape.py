"""Asks workers for what they counted and whether they are ready, and keeps what counted who is gone."""

from __future__ import annotations

import http.client
import logging
import socket
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from guard.workers.counts import WorkerCounts
from guard.workers.merge import counted_only, merge
from guard.workers.worker import Worker

__all__ = ["Scrape"]

_log = logging.getLogger(__name__)

_OPENMETRICS: Final = {"Accept": "application/openmetrics-text; version=1.0.0"}
_AT_A_TIME: Final = 4


@dataclass
class _Book:
    """What one place among the workers has counted.

    Attributes:
        generation: Which of its processes was seen last.
        last: What that one said last.
        past: What all before it had counted.
    """

    generation: int = 0
    last: list[Metric] = field(default_factory=list)
    past: list[Metric] = field(default_factory=list)

    def enter(self, generation: int, said: list[Metric]) -> None:
        """Note what a process says; one of another generation begins at 0 again."""
        if generation < self.generation:
            return  # of one that is gone, asked before it went
        if generation > self.generation:
            self.past = merge([self.past, counted_only(self.last)])
            self.generation = generation
        self.last = said

    def parts(self, *, measured: bool) -> list[list[Metric]]:
        """Return what there is; gauges only if they were ``measured`` just now."""
        return [self.past, self.last if measured else counted_only(self.last)]


class Scrape(Collector):
    """All workers as one, for a registry and for probes; called from threads.

    A worker that does not answer in time is passed over, and that is counted: shown is what it last said that
    it had counted.

    Args:
        workers: All of them.
        own: Gives what the parent counted itself; told whether every worker that serves has answered.
        counts: Told of those that do not answer.
        timeout_s: Longest wait for one.
    """

    def __init__(
        self,
        workers: Sequence[Worker],
        own: Callable[[bool], Iterable[Metric]],
        counts: WorkerCounts,
        *,
        timeout_s: float = 1.0,
    ) -> None:
        self._workers = workers
        self._own = own
        self._counts = counts
        self._timeout_s = timeout_s
        self._books = {worker.seat.number: _Book() for worker in workers}
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(_AT_A_TIME * len(workers), thread_name_prefix="scrape")

    def describe(self) -> list[Metric]:
        """Return nothing: a registry need not ask the workers to take this in."""
        return []

    def collect(self) -> Iterable[Metric]:
        """Return what all have counted and measured."""
        serving = [worker.serves for worker in self._workers]
        answers = list(self._pool.map(self._metrics_of, self._workers))
        answered = any(serving) and all(
            answer is not None or not (served and worker.serves)
            for worker, served, answer in zip(self._workers, serving, answers, strict=True)
        )
        parts: list[list[Metric]] = []
        with self._lock:
            for worker, answer in zip(self._workers, answers, strict=True):
                book = self._books[worker.seat.number]
                if answer is not None:
                    book.enter(*answer)
                parts += book.parts(measured=answer is not None)
        return merge([list(self._own(answered)), *parts])

    def all_say(self, path: str) -> bool:
        """Return whether there are workers that serve, and all of those say yes to a probe."""
        serving = [worker for worker in self._workers if worker.serves]
        return bool(serving) and all(self._pool.map(lambda worker: self._says(worker, path), serving))

    def close(self) -> None:
        """Ask nobody any more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _metrics_of(self, worker: Worker) -> tuple[int, list[Metric]] | None:
        """Return what a worker says, and which of its processes said so; None if it says nothing."""
        generation = worker.generation
        if not worker.serves:
            return None
        try:
            text = _get(worker.seat.metrics_socket, "/metrics", self._timeout_s, _OPENMETRICS)[1]
            families = list(text_string_to_metric_families(text))  # type: ignore[no-untyped-call]
            return (generation, families) if generation == worker.generation else None
        except (OSError, http.client.HTTPException, ValueError) as error:
            if worker.serves:
                self._counts.scrape_failed()
                _log.warning(
                    "a worker does not say what it counted", extra={"worker": worker.name, "why": repr(error)}
                )
            return None

    def _says(self, worker: Worker, path: str) -> bool:
        try:
            return _get(worker.seat.metrics_socket, path, self._timeout_s, {})[0] == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return not worker.serves  # one that ended just now takes no requests, so it holds nobody up


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def _get(socket_path: Path, path: str, timeout_s: float, headers: dict[str, str]) -> tuple[int, str]:
    with closing(_Connection(socket_path, timeout_s)) as connection:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
