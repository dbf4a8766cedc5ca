"""``guard serve`` with several workers: keeps them, and is their one face for operators and metrics.

The parent serves nothing of the data plane. The workers listen on the same port, and the system spreads the
connections over them; what operators ask goes to all of them, and what they count is added up.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry, Metric

from guard import __version__
from guard.assembly import access_of, worker_settings
from guard.errors import SettingsError
from guard.logs import configure_logging
from guard.metrics import Metrics
from guard.metrics_server import MetricsServer
from guard.model_settings import SAME
from guard.records import Records
from guard.rpc.access import DENIED
from guard.rpc.admin_server import AdminServer
from guard.rpc.held_port import HeldPort
from guard.rpc.reception import CALL
from guard.settings import Settings
from guard.workers.control import CrewControl
from guard.workers.counts import WorkerCounts
from guard.workers.crew import Crew
from guard.workers.scrape import Scrape
from guard.workers.seat import Order, Seat

__all__ = ["Supervisor", "serve"]

_log = logging.getLogger(__name__)

_RECORDS_S: Final = 2.0
_LONGEST_PATH: Final = 100  # of a unix socket
_LONGEST_NAME: Final = "256-metrics.sock"
_WORDS: Final = {CALL: (logging.INFO, "admin call"), DENIED: (logging.WARNING, "admin calls denied")}


class Supervisor:
    """The parent of several workers.

    Attributes:
        port, metrics_port: The ports actually bound, once started.
        admin_port: The admin port actually bound, once started; None where there is none.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._own = CollectorRegistry()
        self._metrics = Metrics(self._own)
        self._counts = WorkerCounts(self._own)
        self._records = Records(self._metrics)
        self._control = CrewControl()
        self._exit = AsyncExitStack()
        self._scrape: Scrape | None = None
        self._started = False
        self.port = 0
        self.metrics_port = 0
        self.admin_port: int | None = None

    async def start(self) -> None:
        """Take the ports, start the workers, and open the admin face.

        Raises:
            SettingsError: If a port is taken, the admin face would be open, or workers cannot do what is set.
            WorkerError: If a worker cannot start.
        """
        settings, stack = self._settings, self._exit
        _refuse_what_one_process_has_to_do(settings)
        admin = AdminServer(access_of(settings), on_rpc=self._metrics.rpc, on_event=self._tell)
        async with stack:
            stack.callback(admin.let_go)
            admin.hold()  # what is taken is told before models are loaded, which takes long
            self.port = stack.enter_context(HeldPort(settings.host, settings.port or 0)).number
            folder = _private_folder(stack)
            crew = Crew(
                settings.workers,
                folder,
                order=self._order,
                counts=self._counts,
                joins=self._control.joins,
                said=self._control.said,
                drain_timeout_s=settings.drain_timeout_s,
            )
            self._control.crew = crew
            self._open_metrics_port(crew)
            await self._open_audit_log()
            await crew.start()
            stack.push_async_callback(crew.stop, settings.drain_timeout_s)
            stack.push_async_callback(self._control.close)
            for model in crew.models:
                self._metrics.add_model(model)
            stack.push_async_callback(admin.stop)
            await admin.start(self._control)
            self.admin_port = admin.port
            self._started = True
            self._exit = stack.pop_all()  # started: nothing to undo here any more
        self._say_ready(crew)

    async def stop(self) -> None:
        """Report not ready, and end all workers, each once it has finished what it accepted.

        Raises:
            WorkerError: If one had to be killed.
        """
        self._started = False
        await self._exit.aclose()
        _log.info("stopped")

    def _say_ready(self, crew: Crew) -> None:
        ports = {"port": self.port, "metrics_port": self.metrics_port, "admin_port": self.admin_port}
        self._records.event("server_started", {"guard": __version__, "workers": len(crew.workers), **ports})
        pids = [worker.process.pid for worker in crew.workers if worker.process is not None]
        _log.info("ready", extra={**ports, "models": crew.models, "workers": pids})

    def _order(self, seat: Seat) -> Order:
        return Order(seat=seat, settings=worker_settings(self._settings, seat, self.port))

    def _open_metrics_port(self, crew: Crew) -> None:
        settings = self._settings
        scrape = Scrape(crew.workers, self._counted, self._counts)
        self._exit.callback(scrape.close)
        self._scrape = scrape
        registry = CollectorRegistry()
        registry.register(scrape)
        server = MetricsServer(
            registry,
            host=settings.host,
            port=settings.metrics_port,
            ready=self._is_ready,
            live=lambda: not self._started or scrape.all_say("/healthz"),
        )
        self.metrics_port = server.start()
        self._exit.callback(server.stop)

    def _is_ready(self) -> bool:
        """Whether connections meet a worker that takes requests, whichever it is.

        One that is just being started again does not listen, so no connection meets it, and the others go on.
        """
        return self._started and self._scrape is not None and self._scrape.all_say("/readyz")

    def _counted(self, all_answered: bool) -> Iterable[Metric]:
        self._metrics.ready(self._started and all_answered)  # and each worker says so itself
        return self._own.collect()

    async def _open_audit_log(self) -> None:
        settings = self._settings
        if settings.audit_log is not None:
            await asyncio.to_thread(
                self._records.open_audit,
                settings.audit_log,
                max_bytes=settings.audit_max_bytes,
                key_file=settings.audit_key_file,
            )
            self._exit.push_async_callback(self._close_audit_log)

    async def _close_audit_log(self) -> None:
        self._records.event("server_stopped", {})
        await asyncio.to_thread(self._records.close, _RECORDS_S)

    def _tell(self, kind: str, fields: Mapping[str, object]) -> None:
        self._records.event(kind, fields)
        level, words = _WORDS[kind]
        _log.log(level, words, extra=dict(fields))


def _refuse_what_one_process_has_to_do(settings: Settings) -> None:
    """Refuse to exchange a model in place, while which one process has to hold back all requests."""
    for name, own in settings.models.items():
        if own.upstream_load == "swap" and own.upstream_version != SAME:
            raise SettingsError(
                f"models.{name}.upstream_load = 'swap': expected workers = 1, got {settings.workers}; one "
                f"process has to hold requests back while the server exchanges versions: set that, leave "
                f"upstream_load out, or have versions side by side there (upstream_version = {SAME!r})"
            )


def _private_folder(stack: AsyncExitStack) -> Path:
    """Make a folder that nobody else may look into, for as long as the guard runs.

    Raises:
        SettingsError: If there is no place for one, or its path is too long.
    """
    try:
        made = tempfile.TemporaryDirectory(prefix="guard-", ignore_cleanup_errors=True)
    except OSError as error:
        raise SettingsError(
            f"workers: no folder can be made for their sockets ({error}); set TMPDIR to one that is writable"
        ) from error
    folder = Path(stack.enter_context(made))
    longest = len(os.fsencode(folder / _LONGEST_NAME))
    if longest > _LONGEST_PATH:
        raise SettingsError(
            f"workers: the folder for their sockets is {folder}, so that the path of one has up to {longest} "
            f"bytes, expected at most {_LONGEST_PATH}; set TMPDIR to a shorter one"
        )
    return folder


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then stop gracefully.

    Raises:
        GuardError: If it cannot start, or a worker had to be killed.
    """
    configure_logging(settings.log_level, settings.log_format)
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    supervisor, stopping = Supervisor(settings), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    starting, asked = asyncio.create_task(supervisor.start()), asyncio.create_task(stopping.wait())
    await asyncio.wait({starting, asked}, return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
        await asyncio.wait({starting})
        _log.info("stopped before it served")
        return
    try:
        starting.result()
        await asked
    finally:
        asked.cancel()
    _log.info("stopping", extra={"drain_timeout_s": settings.drain_timeout_s})
    await supervisor.stop()
