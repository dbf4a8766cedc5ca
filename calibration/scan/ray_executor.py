"""Runs a scan's units on the workers of a Ray cluster: the same arrays as in this process, to the bit.

Theory of operation::

    driver                                   worker (an actor, a process of its own)
    ------                                   ----------------------------------------
    ray.put(pack(bench))       once
    engage: fit(torch, bench)  ──────────▶   refuses another torch; unpacks the bench, once
                               ◀──────────   ready
    Handout.take(), heaviest first ──────▶   unit.run(bench)
    yield place, arrays        ◀──────────   arrays, or the exception the unit raised

A worker has at most one unit, and gets one only once it is ready, so nothing waits behind a worker that a
cluster has yet to find room for. All that is under way is one table: which answer is awaited from which
worker, about which unit. An answer is the arrays; or an exception of the unit's own, which goes to the
caller, as it would only be raised again; or Ray's word that the worker is gone: killed, out of memory, its
node lost or preempted, its result lost with the node. Only then is the unit given out again, and another
worker engaged.

Where the numbers come from: the unit, the bench and the number of torch's threads, never the order or the
place. Machines of one kind are taken for granted: other vector instructions sum in another order.
"""

from __future__ import annotations

import importlib
import os
import shutil
import socket
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import numpy as np
import torch

from calibration.errors import ClusterError, OptionError
from calibration.scan.base import Arrays, Bench, Executor, Unit
from calibration.scan.handout import Handout
from calibration.scan.parcel import Raised, pack, unpack

__all__ = ["RayExecutor"]

_THREAD_VARIABLES: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_LAP_S: Final = 5.0
"""How long to wait for an answer before looking whether the cluster has grown."""
_KNOCK_S: Final = 10.0
_LONGEST_FOLDER: Final = 40
"""Characters; Ray puts sockets into it, whose paths may have 107."""


class RayExecutor(Executor):
    """Gives units to the workers of a Ray cluster; needs the extra ``ray``.

    ::

        with RayExecutor(bench, workers=4) as executor:
            report = scanner.scan(bench, seed=0, executor=executor)

    A context manager: leaving it lets the workers go, and stops the cluster if it was started here. Workers
    stay from one ``run`` to the next. They import this project and whatever the model and the units are made
    of: on a cluster that was joined, both must be installed on every node, in the same versions. A local
    cluster uses the driver's working tree where it is; nothing is copied.

    Args:
        bench: What units work on; sent once, unpacked once by each worker.
        address: None starts a cluster on this machine; ``auto`` joins the one this machine belongs to,
            ``host:port`` that one. A Ray that this process has begun already is used as it is, and kept.
        workers: How many; None for as many as the cluster has processors for, now or later.
        threads: Of torch in each worker. Results are those of
            :class:`~calibration.scan.executor.LocalExecutor` in a process of as many.
        tries: How often a unit is begun before the loss of its worker is an error. So many workers lost in a
            row before any is ready are one, too.
        start_timeout_s: How long there may be no worker at all.

    Raises:
        OptionError: If Ray is not installed, or an argument is out of range.
    """

    def __init__(
        self,
        bench: Bench,
        *,
        address: str | None = None,
        workers: int | None = None,
        threads: int = 1,
        tries: int = 3,
        start_timeout_s: float = 120.0,
    ) -> None:
        for name, value in (("workers", workers), ("threads", threads), ("tries", tries)):
            if value is not None and value < 1:
                raise OptionError(f"{name}: expected at least 1, got {value}")
        self._ray = _import_ray()
        self._bench = bench
        self._address = address
        self._workers = workers
        self._threads = threads
        self._tries = tries
        self._start_timeout_s = start_timeout_s
        self._free: list[Any] = []
        self._parcel: Any = None
        self._begun_here = False
        self._folder: Path | None = None

    def __enter__(self) -> RayExecutor:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __str__(self) -> str:
        """``ray``, and how many workers of how many threads where."""
        where = "a local cluster" if self._address is None else self._address
        many = "as many workers as fit" if self._workers is None else f"{self._workers} workers"
        return f"ray: {many} of {self._threads} threads on {where}"

    def start(self) -> None:
        """Start or join the cluster and send the bench; nothing if that is done.

        Raises:
            OptionError: If no cluster answers at the address, or not one of this version of Ray and Python.
        """
        if self._parcel is not None:
            return
        packed = pack(self._bench)
        try:
            if not self._ray.is_initialized():
                self._begin()
            self._parcel = self._ray.put(packed)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let the workers go; stop the cluster, or leave it, if it was started or joined here."""
        self._dismiss(self._free)
        self._free, self._parcel = [], None
        if self._begun_here:
            self._ray.shutdown()
            self._begun_here = False
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def run(self, units: Sequence[Unit]) -> Iterator[tuple[int, Arrays]]:
        """Yield each unit's place in ``units`` and its result, as they come in.

        An exception that a unit raises is raised here, of the same class and with the same message.

        Raises:
            ClusterError: If the workers have another torch, cannot start, or are lost with a unit too often.
        """
        self.start()
        shift = _Shift(self, units)
        try:
            yield from shift.work()
        finally:
            shift.end()

    def _begin(self) -> None:
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        self._begun_here = True  # from here on there may be something to stop
        if self._address is not None:
            try:
                _knock(self._address)
                self._ray.init(address=self._address, **quiet)
            except (OSError, RuntimeError, ValueError) as error:
                raise OptionError(
                    f"address {self._address!r}: expected a Ray cluster that this machine belongs to, "
                    f"got: {_one_line(error)}; start one with 'ray start', or leave the address out"
                ) from error
            return
        self._folder = _folder()
        processors = self._workers * self._threads if self._workers is not None else None
        with _environment(RAY_USAGE_STATS_ENABLED="0", RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0"):
            self._ray.init(
                address="local",
                num_cpus=processors,
                include_dashboard=False,
                _temp_dir=str(self._folder),
                **quiet,
            )

    def _room(self) -> int:
        """Return for how many workers the cluster has processors."""
        if self._workers is not None:
            return self._workers
        return max(1, int(self._ray.cluster_resources().get("CPU", 0)) // self._threads)

    def _engage(self) -> tuple[Any, Any]:
        """Ask for a worker; return it, and the answer that it will give when it is ready."""
        threads = str(self._threads)
        actor = self._ray.remote(_Worker).options(
            num_cpus=self._threads,
            max_restarts=0,
            scheduling_strategy="SPREAD",
            runtime_env={"env_vars": dict.fromkeys(_THREAD_VARIABLES, threads)},
        )
        worker = actor.remote(self._threads)
        return worker, worker.fit.remote(_torch_version(), self._parcel)

    def _dismiss(self, workers: Sequence[Any]) -> None:
        for worker in workers:
            with suppress(self._ray.exceptions.RayError, ConnectionError, RuntimeError, ValueError):
                self._ray.kill(worker)


@dataclass(frozen=True, eq=False)
class _Errand:
    """What is awaited from a worker: that it gets ready, or the unit at this place."""

    worker: Any
    place: int | None = None


@dataclass(eq=False)
class _Shift:
    """One run: its units, its workers, and what is under way."""

    executor: RayExecutor
    units: Sequence[Unit]
    under_way: dict[Any, _Errand] = field(default_factory=dict)
    false_starts: int = 0
    last_worker_s: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.handout = Handout(self.units, self.executor._tries)
        self.free, self.executor._free = self.executor._free, []
        self.ray = self.executor._ray

    def work(self) -> Iterator[tuple[int, Arrays]]:
        self._give_out()
        while self.handout or self._places():
            answers, _ = self.ray.wait(list(self.under_way), num_returns=1, timeout=_LAP_S)
            result = self._take_in(answers[0]) if answers else None
            self._give_out()
            if result is not None:
                yield result

    def end(self) -> None:
        """Keep the workers that are free; one that is at work can only be stopped by ending it."""
        self.executor._dismiss([errand.worker for errand in self.under_way.values()])
        self.executor._free.extend(self.free)

    def _places(self) -> list[int]:
        return [errand.place for errand in self.under_way.values() if errand.place is not None]

    def _give_out(self) -> None:
        while self.free and self.handout:
            worker, place = self.free.pop(), self.handout.take()
            self.under_way[worker.run.remote(self.units[place])] = _Errand(worker, place)
        starting = len(self.under_way) - len(self._places())
        if len(self.handout) > starting:
            wanted = min(self.executor._room() - len(self.under_way), len(self.handout) - starting)
            for _ in range(wanted):
                worker, answer = self.executor._engage()
                self.under_way[answer] = _Errand(worker)
        self._check_there_is_one()

    def _check_there_is_one(self) -> None:
        if self.free or self._places():
            self.last_worker_s = time.monotonic()
        elif time.monotonic() - self.last_worker_s > self.executor._start_timeout_s:
            total, left = self.ray.cluster_resources(), self.ray.available_resources()
            raise ClusterError(
                f"workers: expected one within {self.executor._start_timeout_s:g} s, got none; each needs "
                f"{self.executor._threads} processors, the cluster has {total.get('CPU', 0):g} and "
                f"{left.get('CPU', 0):g} free; ask for fewer threads, or wait until others are done"
            )

    def _take_in(self, answer: Any) -> tuple[int, Arrays] | None:
        """Take a worker's answer; return the result, if it is one."""
        errand = self.under_way.pop(answer)
        try:
            said = self.ray.get(answer)
        except self.ray.exceptions.RayTaskError as error:
            self.executor._dismiss([errand.worker])
            raise ClusterError(
                f"{self._about(errand)}: expected the workers to take it in, got: {_one_line(error.cause)}; "
                f"what model and units are made of must be installed on every node, in the same versions"
            ) from error
        except self.ray.exceptions.RayError as error:
            self.executor._dismiss([errand.worker])
            self._lost(errand, _one_line(error))
            return None
        if errand.place is None:
            self._ready(errand.worker, said)
            return None
        self.free.append(errand.worker)
        if isinstance(said, Raised):
            raise said.error()
        return errand.place, {name: np.array(array) for name, array in said.items()}  # Ray's are read-only

    def _about(self, errand: _Errand) -> str:
        return "the bench" if errand.place is None else f"unit {self.units[errand.place].key}"

    def _ready(self, worker: Any, torch_version: str) -> None:
        if torch_version != _torch_version():
            self.executor._dismiss([worker])
            raise ClusterError(
                f"workers: expected torch {_torch_version()} as here, got {torch_version}, which computes "
                f"other numbers; install the same version on every node"
            )
        self.free.append(worker)
        self.false_starts = 0

    def _lost(self, errand: _Errand, reason: str) -> None:
        if errand.place is not None:
            self.handout.lose(errand.place, reason)
            return
        self.false_starts += 1
        if self.false_starts >= self.executor._tries:
            raise ClusterError(
                f"workers: expected them to start, got {self.false_starts} lost in a row, the last: "
                f"{reason}; this project must be installed on every node, with the extra 'ray'"
            )


class _Worker:
    """What runs in a process of the cluster's: one bench, and its units one after the other."""

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(threads)
        self._bench: Bench | None = None

    def fit(self, torch_version: str, parcel: bytes) -> str:
        """Take the bench, unless it comes from another torch; return the version of the one that is here."""
        if torch_version == _torch_version():
            self._bench = unpack(parcel)
        return _torch_version()

    def run(self, unit: Unit) -> Arrays | Raised:
        """Return a unit's arrays, or what it raised."""
        assert self._bench is not None
        try:
            return dict(unit.run(self._bench))
        except Exception as error:  # noqa: BLE001  any is the caller's
            return Raised(error, f"in unit {unit.key}, on a worker:\n{traceback.format_exc()}")


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """Set environment variables for the while."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _import_ray() -> Any:
    try:  # by name: a type checker would read all of Ray
        return importlib.import_module("ray")
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise OptionError(
            "a Ray cluster needs the extra 'ray': pip install 'inference-guard[ray]'"
        ) from error


def _folder() -> Path:
    """Return a new folder for what a cluster leaves behind."""
    place = None if len(tempfile.gettempdir()) + len("/guard-ray-01234567") <= _LONGEST_FOLDER else "/tmp"
    return Path(tempfile.mkdtemp(prefix="guard-ray-", dir=place))


def _knock(address: str) -> None:
    """Raise OSError if nothing listens at ``host:port``; Ray itself would wait for minutes."""
    host, colon, port = address.rpartition(":")
    if colon and "/" not in address:
        socket.create_connection((host, int(port)), timeout=_KNOCK_S).close()


def _torch_version() -> str:
    return str(torch.__version__)


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return "; ".join([type(error).__name__, *lines])[:500]
