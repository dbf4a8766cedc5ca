"""Put the rooms together, serve, and stop without losing what was accepted."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

from prometheus_client import CollectorRegistry

from guard import __version__
from guard.artifact import Artifact
from guard.assembly import (
    admin_server_of,
    data_server_of,
    declare_encoded_images,
    fleet_of,
    intake_of,
    limits_of,
    neighbourhood_of,
    open_neighbours,
    open_upstreams,
    require_places,
    runtime_options_of,
    watch_inputs,
)
from guard.control import Control
from guard.control.announcer import WORDS, Announcer
from guard.control.canary_counts import CanaryCounts
from guard.control.control_room import ControlRoom
from guard.control.counts import SwapCounts
from guard.control.keeper import Keeper
from guard.control.served_versions import ModelRecord
from guard.control.tools import Tools
from guard.dataplane import DataPlane, Statistics
from guard.dataplane.second_opinions import SECOND_OPINION
from guard.logs import configure_logging
from guard.metrics import Metrics
from guard.metrics_server import MetricsServer
from guard.quarantine import Bounds
from guard.records import Records
from guard.repository import find_models
from guard.rpc.access import DENIED
from guard.rpc.health import HealthServicer
from guard.rpc.reception import CALL
from guard.rpc.servicer import InferenceServicer
from guard.runtime.loader import LoadedModel, load_model
from guard.settings import Settings
from guard.workers.place import Place

__all__ = ["GuardServer", "serve"]

_log = logging.getLogger(__name__)

SERVICE = "inference.GRPCInferenceService"

_RECORDS_S = 2.0  # to write what waits when the time to stop is over

_WORDS: dict[str, tuple[int, str]] = {
    **WORDS,
    CALL: (logging.INFO, "admin call"),
    DENIED: (logging.WARNING, "admin calls denied"),
    SECOND_OPINION: (logging.INFO, "second opinion"),
}


class GuardServer:
    """The sidecar: models, data plane, gRPC port, metrics port, admin face.

    Args:
        settings: What an operator set.
        place: Its place among several; alone, if none is given.

    Attributes:
        port, metrics_port: The ports actually bound, once started.
        admin_port: The admin port actually bound, once started; None where there is none.
        registry: Everything counted.
    """

    def __init__(self, settings: Settings, place: Place | None = None) -> None:
        self._settings = settings
        self._place = place or Place()
        self.registry = CollectorRegistry()
        self._metrics = Metrics(self.registry)
        self._records = Records(self._metrics)
        self._statistics = Statistics()
        self._health = HealthServicer([SERVICE], on_rpc=self._metrics.rpc)
        self._fleet = fleet_of(settings, self.registry, self._show_readiness)
        tools = Tools(
            load=self._load_model,
            announcer=Announcer(self._metrics, SwapCounts(self.registry), self._tell),
            versions=self._place.versions(settings.state_dir),
            drain_timeout_s=settings.drain_timeout_s,
            model_servers=self._fleet,
        )
        self._keeper = Keeper(settings.repository, tools)
        self._canary_counts = CanaryCounts(self.registry)
        self._control = ControlRoom(self._keeper, tools, limits_of(settings), self._canary_counts)
        self._neighbours = neighbourhood_of(settings, self._fleet, self._show_readiness)
        self._exit = AsyncExitStack()
        self._dataplane: DataPlane | None = None
        self._stop_by: float | None = None
        self.port = 0
        self.metrics_port = 0
        self.admin_port: int | None = None

    @property
    def control(self) -> Control:
        """What an operator may ask of this server."""
        return self._control

    @property
    def records(self) -> dict[str, ModelRecord]:
        """What serves and what served, by model."""
        return self._keeper.records

    async def start(self) -> None:
        """Open the metrics port, load and warm up every model, then open the gRPC port and the admin face.

        Raises:
            ArtifactError: If a model of the repository cannot be served.
            SettingsError: If a port is taken, the device is not there, or the admin face would be open.
        """
        settings = self._settings
        admin = admin_server_of(settings, self._metrics.rpc, self._tell, silent=self._place.shared)
        doors = data_server_of(settings, self._metrics.rpc, shared=self._place.shared)
        async with self._exit:
            for door in (doors, admin):  # what is taken is told before models are loaded, which takes long
                self._exit.callback(door.let_go)
                door.hold()
            self._open_metrics_port()
            await self._open_records()
            await self._load_models()
            intake = intake_of(settings, self._metrics)
            self._exit.callback(intake.close)
            dataplane = DataPlane(
                self._keeper.models,
                self._metrics,
                max_request_rows=settings.max_request_rows,
                request_timeout_s=settings.request_timeout_s,
                neighbours=self._neighbours.models,
                witnesses=self._records.witnesses,
                intake=intake,
                statistics=self._statistics,
            )
            servicer = InferenceServicer(
                dataplane,
                on_rpc=self._metrics.rpc,
                max_concurrent_requests=settings.max_concurrent_requests,
                max_queue_rows=settings.max_queue_rows,
                client_header=settings.client_header,
            )
            await doors.start(servicer, self._health, keep=self._relays)
            self._exit.push_async_callback(doors.stop, settings.drain_timeout_s)
            self.port = doors.port
            self._dataplane = dataplane
            self._exit.push_async_callback(admin.stop)
            await admin.start(self.control, *self._place.services(self._control))
            self.admin_port = admin.port
            self._show_readiness()
            if settings.watch_repository_s:
                self._keeper.watch(settings.watch_repository_s, self._place.takes_over)
            self._exit = self._exit.pop_all()  # started: nothing to undo here any more
        ports = {"port": self.port, "metrics_port": self.metrics_port, "admin_port": self.admin_port}
        self._records.event("server_started", {"guard": __version__, **ports})
        names = {"models": sorted(self._keeper.models), "unguarded": sorted(self._neighbours.models)}
        _log.info("worker ready" if self._place.shared else "ready", extra={**ports, **names})

    async def stop(self) -> None:
        """Report not ready, finish what was accepted, close the models and the ports.

        All of it together takes drain_timeout_s and the device call that runs then.
        """
        self._stop_by = time.monotonic() + self._settings.drain_timeout_s
        if self._dataplane is not None:
            self._dataplane.begin_shutdown()
        self._keeper.begin_shutdown()
        self._metrics.ready(False)
        await self._health.stop()
        await self._exit.aclose()
        _log.info("stopped")

    async def _open_records(self) -> None:
        """Open what was asked for before anything can happen; it is closed after everything has."""
        settings, records = self._settings, self._records
        self._exit.push_async_callback(self._close_records)
        if settings.audit_log is not None:
            await asyncio.to_thread(
                records.open_audit,
                settings.audit_log,
                max_bytes=settings.audit_max_bytes,
                key_file=settings.audit_key_file,
            )
        if settings.quarantine_dir is not None:
            bounds = Bounds(
                settings.quarantine_max_items, settings.quarantine_max_bytes, settings.quarantine_max_age_s
            )
            await asyncio.to_thread(records.open_quarantine, settings.quarantine_dir, bounds)

    async def _close_records(self) -> None:
        self._records.event("server_stopped", {})
        await asyncio.to_thread(self._records.close, max(_RECORDS_S, self._time_left_s()))

    async def _load_models(self) -> None:
        settings = self._settings
        there = find_models(settings.repository, may_be_empty=bool(settings.unguarded))
        require_places(settings, set(there))
        self._exit.push_async_callback(self._fleet.close)
        open_upstreams(self._fleet, settings)
        self._exit.push_async_callback(self._neighbours.close)
        open_neighbours(self._neighbours, settings)
        for name in settings.unguarded:
            self._metrics.add_neighbour(name)
        self._exit.push_async_callback(self._keeper.close, self._time_left_s)
        for name in self._place.models(there):
            self._canary_counts.add_model(name)
            await self._keeper.start(
                name,
                settings.policy_of(name),
                settings.on_uncheckable_of(name),
                settings.sampling_of(name),
            )
            self._place.require(name, self._keeper.keeper_of(name).record)
        declare_encoded_images(self._keeper.models, settings)
        self._exit.push_async_callback(watch_inputs(self._keeper.models, settings, self.registry, self._tell))
        await asyncio.gather(self._fleet.attach(self._keeper.models), self._neighbours.start())

    def _load_model(self, name: str, directory: Path, approve: Callable[[Artifact], None]) -> LoadedModel:
        options = runtime_options_of(self._settings, name)
        on_batch = self._device_counts(name, directory.name)
        predict_by = self._fleet.predict_by(name)
        return load_model(name, directory, options, on_batch=on_batch, approve=approve, predict_by=predict_by)

    def _device_counts(self, model: str, version: str) -> Callable[[int, float], None]:
        own = self._settings.models.get(model)
        if own is not None and own.upstream is not None:  # what is executed is told by its server
            return partial(self._metrics.device_batch, model)

        def called(pairs: int, seconds: float) -> None:
            self._metrics.device_batch(model, pairs, seconds)
            self._statistics.executed(model, version, pairs, seconds)

        return called

    @property
    def _relays(self) -> bool:
        """Whether any request goes on to a model server."""
        return bool(self._fleet) or bool(self._neighbours.models)

    def _tell(self, kind: str, fields: Mapping[str, object]) -> None:
        self._records.event(kind, fields)
        self._place.event(kind, fields)
        level, words = _WORDS[kind]
        _log.log(level, words, extra=dict(fields))

    def _time_left_s(self) -> float:
        stop_by = self._stop_by
        return self._settings.drain_timeout_s if stop_by is None else max(0.0, stop_by - time.monotonic())

    def _open_metrics_port(self) -> None:
        """Open it first, so that probes are answered while models load."""
        settings = self._settings
        server = MetricsServer(
            self.registry,
            host=settings.host,
            port=settings.metrics_port,
            ready=self._is_ready,
            unix_socket=self._place.metrics_socket,
        )
        self.metrics_port = server.start()
        self._exit.callback(server.stop)

    def _show_readiness(self) -> None:
        """Say in health and metrics what is so now; a server that only starts says nothing yet."""
        if self._dataplane is not None:
            self._metrics.ready(self._is_ready())
            self._health.set_serving(self._is_ready())

    def _is_ready(self) -> bool:
        return self._dataplane is not None and self._dataplane.ready()


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then stop gracefully."""
    configure_logging(settings.log_level, settings.log_format)
    server = GuardServer(settings)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    await server.start()
    await stopping.wait()
    _log.info("stopping", extra={"drain_timeout_s": settings.drain_timeout_s})
    await server.stop()
