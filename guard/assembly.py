"""What the settings mean to each room: rooms take plain arguments, and here they are made."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry

from guard.artifact import Preprocessing
from guard.control.canary_tally import CanaryLimits
from guard.dataplane import ServedModel
from guard.dataplane.drift_counts import DriftCounts
from guard.dataplane.drift_watch import DriftWatch
from guard.dataplane.intake import Intake, check_declaration
from guard.dataplane.opinion_counts import OpinionCounts
from guard.dataplane.second_opinions import Consultant, close_all
from guard.dataplane.share import Share
from guard.errors import SettingsError
from guard.metrics import Metrics
from guard.model_settings import SAME, ModelSettings
from guard.rpc.access import Access, OnEvent
from guard.rpc.admin_server import AdminServer
from guard.rpc.data_server import DataServer, Doors
from guard.rpc.outcome import OnRpc
from guard.rpc.server_tls import ServerTls
from guard.runtime.loader import RuntimeOptions
from guard.settings import Settings
from guard.upstream import Address, Fleet, Neighbourhood, Tls
from guard.workers.seat import Seat

__all__ = [
    "access_of",
    "admin_server_of",
    "data_server_of",
    "declare_encoded_images",
    "fleet_of",
    "intake_of",
    "limits_of",
    "neighbourhood_of",
    "open_neighbours",
    "open_upstreams",
    "require_places",
    "runtime_options_of",
    "watch_inputs",
    "worker_settings",
]


def runtime_options_of(settings: Settings, model: str) -> RuntimeOptions:
    """Return how a model is run.

    Raises:
        SettingsError: If CUDA graphs are asked for where it is not CUDA that runs.
    """
    own = settings.models.get(model, ModelSettings())
    cuda_graphs = settings.cuda_graphs if own.cuda_graphs is None else own.cuda_graphs
    if cuda_graphs and settings.device != "cuda":
        where = "cuda_graphs" if own.cuda_graphs is None else f"models.{model}.cuda_graphs"
        raise SettingsError(
            f"expected device = 'cuda' beside {where}, got {settings.device!r}; set it, or leave out {where}"
        )
    return RuntimeOptions(
        precision=own.precision or settings.precision,
        second_opinions=_second_opinions_of(settings, model) != "off",
        cuda_graphs=cuda_graphs,
        device=settings.device,
        threads=settings.threads or None,
        max_batch_pairs=settings.max_batch_pairs,
        max_queue_rows=settings.max_queue_rows,
        max_client_rows=settings.max_client_rows,
    )


def intake_of(settings: Settings, metrics: Metrics) -> Intake:
    """Return what reads the images that callers send."""
    return Intake(
        max_rows=settings.max_request_rows,
        max_pixels=settings.max_image_pixels,
        max_waiting=settings.max_queue_rows,
        on_shed=metrics.shed,
    )


def declare_encoded_images(models: Mapping[str, ServedModel], settings: Settings) -> None:
    """Tell models what the settings say of encoded images.

    Raises:
        SettingsError: If that does not fit the model, or such images cannot be read here.
    """
    for name, own in settings.models.items():
        encoded, current = own.encoded_images, models[name].slot.current if name in models else None
        if encoded is None or current is None:
            continue
        record = Preprocessing(**encoded.model_dump(exclude={"input"}), eight_bit=True)
        check_declaration(record, current.profile.input, name)
        models[name].encoded = record
        models[name].encoded_input = encoded.input or ""


def watch_inputs(
    models: Mapping[str, ServedModel], settings: Settings, registry: CollectorRegistry, tell: OnEvent
) -> Callable[[], Awaitable[None]]:
    """Have the inputs of all models watched, and others asked about them; return what ends that."""
    drift, opinions = DriftCounts(registry), OpinionCounts(registry)
    for name, served in models.items():
        share = settings.full_check_share_of(name)
        served.watch = DriftWatch(
            served.slot,
            Share(share, np.random.default_rng()),
            drift,
            false_alarm_rate=settings.drift_false_alarm_rate,
            cusum_limit=settings.drift_cusum_limit,
        )
        drift.add_model(name, served.watch.watched)
        wanted = _second_opinions_of(settings, name)
        if wanted != "off":
            sampled = Share(share if wanted == "sampled" else 0.0, np.random.default_rng())
            served.consultant = Consultant(served.slot, sampled, opinions, tell, served.is_held)
            opinions.add_model(name)
    return partial(close_all, [served.consultant for served in models.values() if served.consultant])


def _second_opinions_of(settings: Settings, model: str) -> str:
    own = settings.models.get(model, ModelSettings()).second_opinions
    return settings.second_opinions if own is None else own


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


def worker_settings(settings: Settings, seat: Seat, port: int) -> dict[str, Any]:
    """Return what a worker is told to set: as the parent, but for what each needs of its own.

    The threads of a device call are an even share of the cores, unless they are set. An audit log is a chain,
    so that each worker writes one of its own, ``<name>.worker-1`` and so on.
    """
    cores, log = len(os.sched_getaffinity(0)), settings.audit_log
    own = {
        "port": port,
        "threads": settings.threads or max(1, cores // settings.workers),
        "watch_repository_s": settings.watch_repository_s if seat.leads else 0.0,
        "audit_log": log if log is None else log.with_name(f"{log.name}.{seat.name}"),
        "admin_socket": seat.admin_socket,
        "admin_port": None,
        "admin_token_file": None,
        "admin_tls_cert": None,
        "admin_tls_key": None,
        "admin_tls_client_ca": None,
        "workers": 1,
    }
    # What is at its default is left out: some settings mean something by being there at all.
    return settings.model_copy(update=own).model_dump(mode="json", exclude_defaults=True)


def admin_server_of(settings: Settings, on_rpc: OnRpc, on_event: OnEvent, *, silent: bool) -> AdminServer:
    """Return the admin face.

    Args:
        settings: What an operator set.
        on_rpc: Told of each call.
        on_event: Told of each call that ended, and of those turned away.
        silent: Whether nobody is told, as who asks is a parent that counts and records who asked it.

    Raises:
        SettingsError: If it would be open to whoever knocks, or a file is not what it has to be.
    """
    access = access_of(settings)
    return AdminServer(access) if silent else AdminServer(access, on_rpc=on_rpc, on_event=on_event)


def data_server_of(settings: Settings, on_rpc: OnRpc, *, shared: bool) -> DataServer:
    """Return what opens the doors to callers.

    Raises:
        SettingsError: If a certificate is not what it has to be.
    """
    tls = ServerTls("", settings.tls_cert, settings.tls_key, settings.tls_client_ca)
    return DataServer(
        Doors(settings.host, settings.port, settings.socket, tls, shared),
        max_message_bytes=settings.max_message_bytes,
        max_concurrent_requests=settings.max_concurrent_requests,
        on_rpc=on_rpc,
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
        if own.upstream is not None and own.guarded:
            same = own.upstream_version == SAME
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
                tls=_tls_of(own),
            )


def neighbourhood_of(settings: Settings, fleet: Fleet, on_change: Callable[[], None]) -> Neighbourhood:
    """Return what passes models through, with none of them yet."""
    return Neighbourhood(
        fleet.counts,
        max_message_bytes=settings.max_message_bytes,
        poll_s=settings.upstream_poll_s,
        wait_s=settings.upstream_wait_s,
        on_change=on_change,
    )


def open_neighbours(neighbourhood: Neighbourhood, settings: Settings) -> None:
    """Pass through every model that the settings name so; on the event loop.

    Raises:
        SettingsError: If a connection cannot be secured as they say.
    """
    guarded = [place for name in settings.guarded if (place := settings.models[name].place_of(name))]
    for name in settings.unguarded:
        own = settings.models[name]
        place = own.place_of(name)
        if own.upstream is None or place is None:
            continue
        neighbourhood.open(
            Address(name, own.upstream, own.upstream_model or name, own.upstream_version or ""),
            guarded=frozenset(model for server, model in guarded if server == place[0]),
            tls=_tls_of(own),
        )


def require_places(settings: Settings, found: set[str]) -> None:
    """Refuse settings of models that are not there, and an artifact of one that is passed through.

    Raises:
        SettingsError: Naming the model.
    """
    for name in sorted(set(settings.guarded) - found):
        raise SettingsError(
            f"settings name the model {name!r}, which is not in {settings.repository}; "
            f"there are {sorted(found)}"
        )
    for name in sorted(set(settings.unguarded) & found):
        raise SettingsError(
            f"model {name!r} is to be passed through (guarded = false), but {settings.repository} holds an "
            f"artifact for it; guard it, or take the artifact away"
        )


def _tls_of(own: ModelSettings) -> Tls | None:
    ca = own.upstream_tls_ca
    return None if ca is None else Tls(ca, own.upstream_tls_cert, own.upstream_tls_key)
