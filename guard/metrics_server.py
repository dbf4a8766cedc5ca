"""Serve ``/metrics``, ``/healthz`` and ``/readyz`` over HTTP, in threads of their own.

At a port, or, for a worker whose parent asks, at a unix socket in a folder that nobody else may look into.

Threads, so that a busy event loop delays no scrape: the moment the guard is overloaded is the
moment its metrics are wanted.
"""

from __future__ import annotations

import logging
import socket
import socketserver
import threading
from collections.abc import Callable, Iterable
from http import HTTPStatus
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer
from wsgiref.types import WSGIApplication, WSGIEnvironment

from prometheus_client import CollectorRegistry, make_wsgi_app

from guard.errors import SettingsError

__all__ = ["MetricsServer"]

logger = logging.getLogger(__name__)

# wsgiref's own is a protocol that cannot be checked while tests run.
StartResponse = Callable[..., Any]


class MetricsServer:
    """The HTTP face for Prometheus and for probes.

    Args:
        registry: What ``/metrics`` shows.
        host: Address or name to listen on.
        port: 0 for any free one.
        unix_socket: Listen there instead, in place of what is there.
        ready: Asked at every ``/readyz``: 200 if true, else 503.
        live: Asked at every ``/healthz``, alike.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        host: str,
        port: int,
        ready: Callable[[], bool],
        live: Callable[[], bool] = lambda: True,
        unix_socket: Path | None = None,
    ) -> None:
        self._app = _routes(make_wsgi_app(registry), {"/healthz": live, "/readyz": ready})
        self._host = host
        self._port = port
        self._unix_socket = unix_socket
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> int:
        """Listen, and return the port; 0 for a unix socket.

        Raises:
            SettingsError: If ``host`` and ``port`` cannot be listened on.
        """
        try:
            server = self._listening()
        except (OSError, OverflowError) as error:
            raise SettingsError(
                f"metrics_port {self._port} cannot be listened on at host {self._host!r}: {error}; "
                "expected a free port, choose another or 0 for any"
            ) from error
        server.set_app(self._app)
        thread = threading.Thread(
            target=server.serve_forever, kwargs={"poll_interval": 0.05}, name="metrics-server", daemon=True
        )
        thread.start()
        self._server, self._thread = server, thread
        return server.server_port

    def _listening(self) -> _Server:
        if self._unix_socket is None:
            return _Server.listening_on(self._host, self._port)
        self._unix_socket.unlink(missing_ok=True)
        return _UnixServer(str(self._unix_socket), _Handler)  # type: ignore[arg-type]

    def stop(self) -> None:
        """Stop listening and wait for the thread; does nothing unless started."""
        if self._server is None or self._thread is None:
            return
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._server = self._thread = None

    def __enter__(self) -> MetricsServer:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()


class _Handler(WSGIRequestHandler):
    timeout = 10.0  # a client that sends nothing holds a thread no longer than this

    def log_message(self, format: str, *args: Any) -> None:
        logger.debug(format, *args)


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True

    @classmethod
    def listening_on(cls, host: str, port: int) -> _Server:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        # The family is a class attribute of the standard server, hence a class for each.
        kind = type(cls.__name__, (cls,), {"address_family": family})
        server: _Server = kind((address[0], port), _Handler)
        return server

    def server_bind(self) -> None:
        # Not HTTPServer's, which asks DNS for this host's name and may wait long for it.
        socketserver.TCPServer.server_bind(self)
        host, port = self.server_address[:2]
        self.server_name, self.server_port = str(host), int(port)
        self.setup_environ()

    def handle_error(self, request: Any, client_address: Any) -> None:
        logger.debug("connection to the metrics server broke off", exc_info=True)


class _UnixServer(_Server):
    address_family = socket.AF_UNIX

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "unix", 0
        self.setup_environ()

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, _ = self.socket.accept()
        return connection, ("unix", 0)  # the other end has no name of its own


def _routes(exposition: WSGIApplication, probes: dict[str, Callable[[], bool]]) -> WSGIApplication:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path != "/metrics" and path not in probes:
            return _text(start_response, HTTPStatus.NOT_FOUND, "expected /metrics, /healthz or /readyz")
        try:
            if path == "/metrics":
                return exposition(environ, start_response)
            passed = probes[path]()
        except Exception:
            logger.exception("%s failed", path)
            return _text(start_response, HTTPStatus.INTERNAL_SERVER_ERROR, "failed, see the server's log")
        if passed:
            return _text(start_response, HTTPStatus.OK, "ok")
        return _text(start_response, HTTPStatus.SERVICE_UNAVAILABLE, "not ok")

    return app


def _text(start_response: StartResponse, status: HTTPStatus, text: str) -> list[bytes]:
    body = f"{text}\n".encode()
    headers = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))]
    start_response(f"{status.value} {status.phrase}", headers)
    return [body]
