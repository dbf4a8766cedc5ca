"""What the settings mean to each room: rooms take plain arguments, and here they are made."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry

from guard.control.canary_tally import CanaryLimits
from guard.model_settings import SAME
from guard.rpc.access import Access
from guard.runtime.loader import RuntimeOptions
from guard.settings import Settings
from guard.upstream import Address, Fleet, Tls

__all__ = ["access_of", "fleet_of", "limits_of", "open_upstreams", "runtime_options_of"]


def runtime_options_of(settings: Settings) -> RuntimeOptions:
    """Return how models are run."""
    return RuntimeOptions(
        device=settings.device,
        threads=settings.threads or None,
        max_batch_pairs=settings.max_batch_pairs,
        max_queue_rows=settings.max_queue_rows,
    )


def limits_of(settings: Settings) -> CanaryLimits:
    """Return when a candidate is taken off the traffic."""
    return CanaryLimits(
        max_error_rate=settings.canary_max_error_rate,
        max_latency_ratio=settings.canary_max_latency_ratio,
        max_rejection_rate=settings.canary_max_rejection_rate,
        max_disagreement=settings.canary_max_disagreement,
        min_rows=settings.canary_min_rows,
    )


def access_of(settings: Settings) -> Access:
    """Return who gets in at the admin face, and where."""
    return Access(
        host=settings.admin_host,
        port=settings.admin_port,
        socket=settings.admin_socket,
        token_file=settings.admin_token_file,
        tls_cert=settings.admin_tls_cert,
        tls_key=settings.admin_tls_key,
        tls_client_ca=settings.admin_tls_client_ca,
    )


def fleet_of(settings: Settings, registry: CollectorRegistry, on_change: Callable[[], None]) -> Fleet:
    """Return what stands in front of model servers, with none of them yet."""
    return Fleet(
        registry,
        max_message_bytes=settings.max_message_bytes,
        timeout_s=settings.request_timeout_s,
        poll_s=settings.upstream_poll_s,
        wait_s=settings.upstream_wait_s,
        load_s=settings.upstream_load_s,
        drain_s=settings.drain_timeout_s,
        on_change=on_change,
    )


def open_upstreams(fleet: Fleet, settings: Settings) -> None:
    """Stand in front of every model server that the settings name; on the event loop.

    Raises:
        SettingsError: If a connection cannot be secured as they say.
    """
    for name, own in settings.models.items():
        if own.upstream is not None:
            ca, same = own.upstream_tls_ca, own.upstream_version == SAME
            fleet.open(
                Address(
                    name,
                    own.upstream,
                    own.upstream_model or name,
                    "" if same else own.upstream_version or "",
                    same=same,
                ),
                checks=own.upstream_check == "upstream",
                max_batch_size=own.upstream_max_batch_size,
                loads=own.upstream_load == "swap",
                tls=None if ca is None else Tls(ca, own.upstream_tls_cert, own.upstream_tls_key),
            )
