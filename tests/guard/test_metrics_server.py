"""The HTTP face for Prometheus and probes, over a real socket."""

from __future__ import annotations

import gzip
import http.client
import logging
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from guard.errors import SettingsError
from guard.metrics_server import MetricsServer
from tests.serving import PATIENCE_S

HOST = "127.0.0.1"


class Switch:
    def __init__(self) -> None:
        self.on = True

    def __call__(self) -> bool:
        return self.on


def get(
    port: int, path: str, *, method: str = "GET", **headers: str
) -> tuple[int, http.client.HTTPMessage, bytes]:
    connection = http.client.HTTPConnection(HOST, port, timeout=PATIENCE_S)
    try:
        connection.request(method, path, headers={key.replace("_", "-"): v for key, v in headers.items()})
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


@pytest.fixture
def registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    Gauge("guard_ready", "help", registry=registry).set(1)
    return registry


@pytest.fixture
def ready() -> Switch:
    return Switch()


@pytest.fixture
def port(registry: CollectorRegistry, ready: Switch) -> Iterator[int]:
    server = MetricsServer(registry, host=HOST, port=0, ready=ready)
    yield server.start()
    server.stop()


def test_metrics_are_served_in_the_format_the_scraper_asks_for(port: int) -> None:
    status, headers, body = get(port, "/metrics")
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert [family.name for family in parse_text(body.decode())] == ["guard_ready"]

    _, headers, body = get(port, "/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    families = parse_openmetrics(body.decode())  # type: ignore[no-untyped-call]
    assert [family.name for family in families] == ["guard_ready"]


def test_metrics_are_compressed_if_asked(port: int) -> None:
    _, headers, body = get(port, "/metrics", Accept_Encoding="gzip")
    assert headers["Content-Encoding"] == "gzip"
    assert b"guard_ready 1.0" in gzip.decompress(body)


def test_ready_follows_the_server_and_live_does_not(port: int, ready: Switch) -> None:
    assert get(port, "/readyz")[0] == 200
    ready.on = False
    assert get(port, "/readyz")[::2] == (503, b"not ok\n")
    assert get(port, "/healthz")[::2] == (200, b"ok\n")


def test_a_server_that_is_not_live_says_so(registry: CollectorRegistry) -> None:
    server = MetricsServer(registry, host=HOST, port=0, ready=lambda: True, live=lambda: False)
    port = server.start()
    assert get(port, "/healthz")[0] == 503
    server.stop()


def test_another_path_is_not_found(port: int) -> None:
    status, _, body = get(port, "/metrics/../etc")
    assert (status, body) == (404, b"expected /metrics, /healthz or /readyz\n")


def test_another_method_is_refused(port: int) -> None:
    assert get(port, "/metrics", method="DELETE")[0] == 405


def test_a_probe_that_raises_is_a_500_and_in_the_log(
    registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> bool:
        raise RuntimeError("scheduler is gone")

    Gauge("guard_queue_rows", "help", registry=registry).set_function(broken)
    server = MetricsServer(registry, host=HOST, port=0, ready=broken)
    port = server.start()
    with caplog.at_level(logging.ERROR, "guard.metrics_server"):
        answers = [get(port, path)[::2] for path in ("/readyz", "/metrics")]
    server.stop()
    assert answers == [(500, b"failed, see the server's log\n")] * 2
    assert [record.getMessage() for record in caplog.records] == ["/readyz failed", "/metrics failed"]


def test_requests_are_not_printed(port: int, capfd: pytest.CaptureFixture[str]) -> None:
    assert get(port, "/healthz")[0] == 200
    with socket.create_connection((HOST, port), timeout=PATIENCE_S) as broken_off:
        broken_off.sendall(b"GET /metrics HTTP/1.1\r\nHos")
    assert get(port, "/healthz")[0] == 200
    assert capfd.readouterr() == ("", "")


def test_a_client_that_sends_nothing_delays_nobody(port: int) -> None:
    with socket.create_connection((HOST, port), timeout=PATIENCE_S):
        assert get(port, "/healthz")[0] == 200


def test_scrapes_run_side_by_side(port: int) -> None:
    with ThreadPoolExecutor(4) as pool:
        statuses = list(pool.map(lambda _: get(port, "/metrics")[0], range(16)))
    assert statuses == [200] * 16


def test_a_taken_port_names_the_setting(registry: CollectorRegistry, port: int) -> None:
    second = MetricsServer(registry, host=HOST, port=port, ready=lambda: True)
    with pytest.raises(SettingsError, match=rf"metrics_port {port} .*'{HOST}'.*choose another"):
        second.start()
    second.stop()


@pytest.mark.parametrize(("host", "port"), [("host.invalid", 0), (HOST, 70_000)])
def test_an_address_nobody_can_listen_on_names_the_setting(
    registry: CollectorRegistry, host: str, port: int
) -> None:
    with pytest.raises(SettingsError, match=f"metrics_port {port}"):
        MetricsServer(registry, host=host, port=port, ready=lambda: True).start()


def test_stop_frees_the_port_and_joins_the_thread(registry: CollectorRegistry) -> None:
    server = MetricsServer(registry, host=HOST, port=0, ready=lambda: True)
    port = server.start()
    server.stop()
    server.stop()
    assert [t.name for t in threading.enumerate() if t.name == "metrics-server"] == []

    again = MetricsServer(registry, host=HOST, port=port, ready=lambda: True)
    assert again.start() == port
    again.stop()


def test_it_stops_at_the_end_of_a_with_block(registry: CollectorRegistry) -> None:
    with MetricsServer(registry, host=HOST, port=0, ready=lambda: True):
        names = [t.name for t in threading.enumerate()]
        assert "metrics-server" in names
    assert "metrics-server" not in [t.name for t in threading.enumerate()]
