"""What is different in a guard that is one of several; one that serves alone has no neighbours."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from guard.control.control_room import ControlRoom
from guard.control.model_keeper import ModelKeeper
from guard.control.served_versions import ModelRecord, ServedVersions
from guard.control.watcher import TakeOver, take_over
from guard.errors import SettingsError, WorkerError
from guard.rpc.pb.guard_worker_pb2_grpc import add_GuardWorkerServicer_to_server
from guard.workers.change_servicer import ChangeServicer
from guard.workers.lifeline import NEWER, Lifeline
from guard.workers.seat import Seat

__all__ = ["Place", "WorkerPlace"]

_log = logging.getLogger(__name__)

_LOOKS_UNTIL_TOLD_AGAIN: Final = 5


class Place:
    """Of a guard that serves alone.

    Attributes:
        shared: Whether others listen on its port too, and a parent speaks for it.
        metrics_socket: Where it is asked for metrics instead of at a port; None for the port.
        takes_over: What is done with a version that its watcher finds.
    """

    shared: bool = False
    metrics_socket: Path | None = None
    takes_over: TakeOver = staticmethod(take_over)

    def versions(self, state_dir: Path | None) -> ServedVersions:
        """Return what keeps which versions serve."""
        return ServedVersions(state_dir)

    def models(self, found: Iterable[str]) -> list[str]:
        """Return which of the models in the repository are to be served."""
        return list(found)

    def require(self, model: str, record: ModelRecord) -> None:
        """Refuse to serve something else than the others do."""

    def event(self, kind: str, fields: Mapping[str, object]) -> None:
        """Hear of what happened."""

    def services(self, control: ControlRoom) -> Iterable[Callable[[Any], None]]:
        """Return what the admin face serves besides."""
        return ()


class WorkerPlace(Place):
    """Of a guard that is one of several.

    Args:
        seat: Which one.
        lifeline: Speaks to the parent.
    """

    shared = True

    def __init__(self, seat: Seat, lifeline: Lifeline) -> None:
        self._seat = seat
        self._lifeline = lifeline
        self.metrics_socket = seat.metrics_socket
        self.takes_over = self._tell_parent

    def versions(self, state_dir: Path | None) -> ServedVersions:
        """Return what keeps which versions serve: what the others serve, and on disk in one worker alone."""
        return _ToldVersions(state_dir if self._seat.leads else None, self._seat.records, self._lifeline)

    def models(self, found: Iterable[str]) -> list[str]:
        """Return those that the others serve; all, where this one is the first."""
        return [name for name in found if not self._seat.records or name in self._seat.records]

    def require(self, model: str, record: ModelRecord) -> None:
        """Refuse to serve something else than the others do.

        Raises:
            WorkerError: If another version came to serve here.
        """
        others = self._seat.records.get(model)
        if others is not None and others.current != record.current:
            raise WorkerError(
                f"model {model!r}: version {others.current.version!r} serves in the other workers and cannot "
                f"be served here, only {record.current.version!r}; restore it in the repository, or swap"
            )

    def event(self, kind: str, fields: Mapping[str, object]) -> None:
        """Tell the parent of what concerns all."""
        self._lifeline.event(kind, fields)

    def services(self, control: ControlRoom) -> Iterable[Callable[[Any], None]]:
        """Return the service by which all workers change together."""
        servicer = ChangeServicer(control)
        return (lambda server: add_GuardWorkerServicer_to_server(servicer, server),)  # type: ignore[no-untyped-call]

    async def _tell_parent(self, keeper: ModelKeeper, version: str) -> None:
        """Have all workers take a version over; unless they do it is told of again some looks later."""
        keeper.put_off(version, _LOOKS_UNTIL_TOLD_AGAIN)
        self._lifeline.say(NEWER, model=keeper.name, version=version)


class _ToldVersions(ServedVersions):
    def __init__(
        self, state_dir: Path | None, records: Mapping[str, ModelRecord], lifeline: Lifeline
    ) -> None:
        super().__init__(state_dir)
        self._records = dict(records)
        self._lifeline = lifeline

    def read(self) -> dict[str, ModelRecord]:
        if not self._records:
            return super().read()
        with suppress(SettingsError):  # what the others serve is known better than from there
            super().read()
        for model, record in self._records.items():
            self._catch_up(model, record)
        return dict(self._records)

    def _catch_up(self, model: str, record: ModelRecord) -> None:
        """Write down a change that the others made while the process ended that had to write it down."""
        if self._content.models.get(model) == record:
            return
        try:
            super().write(model, record)
        except OSError as error:
            _log.error(
                "what serves cannot be written down; a restart may serve another version: see to state_dir",
                extra={"model": model, "why": str(error)},
            )

    def write(self, model: str, record: ModelRecord) -> None:
        self._lifeline.record(model, record)
        super().write(model, record)
