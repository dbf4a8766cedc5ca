"""What an operator can set, from flags, environment, a TOML file, and defaults, in that order.

Only :mod:`guard.cli` and :mod:`guard.server` read settings; rooms take plain arguments.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, Field, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from guard.artifact.precision import Precision
from guard.detection.threshold import Policy
from guard.errors import SettingsError
from guard.model_settings import Count, EncodedImages, ModelSettings, OnUncheckable, Positive, Rate
from guard.settings_errors import explain

__all__ = ["Settings", "load_settings"]

Port = Annotated[int, Field(ge=0, le=65535)]
Threads = Annotated[int, Field(ge=0, le=1024)]
MessageBytes = Annotated[int, Field(ge=1, le=2**31 - 1)]  # gRPC keeps it in 32 bits
_METADATA_KEY: Final = r"^[a-z0-9_.][a-z0-9_.-]{0,63}$"  # as gRPC has them, in small letters
Seconds = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]


def _none(value: object) -> object:
    return None if value == "none" else value


class Settings(BaseSettings):
    """Settings of ``guard serve``.

    Attributes:
        repository: Model repository, ``<repository>/<model>/<version>/``.
        host: Address of the gRPC port and the metrics port.
        port: gRPC port; 0 picks a free one, None (``"none"``) opens none.
        socket: Path of a unix socket for the same, besides the port or in its place; the guard's user and
            group may connect. None for none.
        tls_cert: Certificate chain of the gRPC port, PEM; None for no TLS. A renewed one is used as soon as
            it is there.
        tls_key: Its key, PEM.
        tls_client_ca: Who signs the client certificates that are let in, PEM; None to ask for none.
        metrics_port: HTTP port of /metrics, /healthz and /readyz; 0 picks a free one.
        policy: ``enforce`` refuses suspicious inputs, ``flag`` answers and says so, ``monitor``
            answers at once and only records.
        on_uncheckable: ``refuse`` fails closed on what cannot be checked; ``answer`` lets it through, counted
        sampling: Share of the requests that are checked; below 1 only with ``monitor``.
        full_check_share: Share of the checked inputs that get all blends, for scores that drift shows in.
        second_opinions: About what others are asked: ``flagged``, that and what is ``sampled``, or ``off``.
        drift_false_alarm_rate: Chance that inputs like those of the calibration ever seem to exceed the
            certified rate.
        drift_cusum_limit: Standard deviations, summed up, from which the scores count as moved.
        device: ``auto`` takes CUDA where there is one.
        precision: What models compute in; None for what each was calibrated in.
        cuda_graphs: Whether device calls are filled up to sizes that repeat, which CUDA captures and replays.
        workers: Processes that serve, each with models, queues and connections of its own, all on one port.
        threads: CPU threads of one device call; 0 for one a core, or its share of them for a worker.
        max_batch_pairs: Pairs (image and overlay) a device batch is filled up to.
        max_queue_rows: Rows that may wait for one model before requests are shed.
        max_client_rows: Rows of one client that may wait for answers of one model; None for as many as there
            is room.
        client_header: Metadata key in which a trusted proxy in front says who asks; None for the address of
            the caller.
        max_request_rows: Most rows in one request.
        max_message_bytes: Largest gRPC message that is taken, from callers and from model servers.
        max_image_pixels: Most pixels of an encoded image (BYTES), as its file declares them.
        max_concurrent_requests: Calls, and requests on streams, taken in at a time, of all models together;
            with max_message_bytes it bounds the memory that requests hold.
        request_timeout_s: Longest a request may take when its caller sets no shorter deadline.
        drain_timeout_s: Longest wait for accepted requests at shutdown.
        state_dir: Directory in which is kept which versions serve; a restart then serves those. None to
            serve the highest version of each model at every start.
        watch_repository_s: Seconds between looks for higher versions, which are served then; 0 for none.
        upstream_poll_s: Seconds between looks whether a model server is ready.
        upstream_wait_s: Longest that a request is held back, nothing sent, until its server can be asked.
        upstream_load_s: Longest that a model server may take to load a version that is swapped to.
        canary_max_error_rate: Share of its requests on which a candidate that is tried may fail; beyond it,
            as beyond the other limits, it is taken off the traffic.
        canary_max_latency_ratio: How many times the current version's p99 it may take; 2 % may take longer.
        canary_max_rejection_rate: Share of the rows accepted by the current version which it may find
            suspicious, besides the false-rejection rate certified for it.
        canary_max_disagreement: Share of the rows accepted by both to which it may give another class.
        canary_min_rows: Rows that are compared before rejections and classes are judged.
        admin_port: TCP port of the admin face (guard.admin.v1 and V2's repository calls); 0 picks a free one,
            None opens none.
        admin_host: Address of the admin port.
        admin_socket: Path of a unix socket for the same, the guard's own user's alone; None for none.
        admin_token_file: File with the bearer token that is asked for at both; None to ask for none.
        admin_tls_cert: Certificate chain of the admin port, PEM; None for no TLS.
        admin_tls_key: Its key, PEM.
        admin_tls_client_ca: Who signs the client certificates that are let in, PEM; None to ask for none.
        audit_log: File in which every verdict other than ``accept`` and every operation is written down,
            each line chained to the one before; None for none. Each guard needs its own.
        audit_max_bytes: Size from which the file is put aside and a new one begun; none is ever removed.
        audit_key_file: File with the key of the chain, so that nobody without it can make up lines; it
            must not be open to everybody on the machine. None for plain hashes.
        quarantine_dir: Folder in which rejected and flagged inputs are kept; None to keep none. Guards may
            share it.
        quarantine_max_items: Inputs kept there; the oldest go first, as for the other two bounds.
        quarantine_max_bytes: Bytes kept there.
        quarantine_max_age_s: Seconds that an input is kept.
        log_level: Least severe level that is logged.
        log_format: ``json`` for one object a line, ``text`` for people.
        models: Settings of single models, by name.
    """

    model_config = SettingsConfigDict(
        env_prefix="GUARD_", env_nested_delimiter="__", extra="forbid", frozen=True
    )

    repository: Path
    host: Annotated[str, Field(min_length=1)] = "0.0.0.0"
    port: Annotated[Port | None, BeforeValidator(_none)] = 8001
    socket: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    metrics_port: Port = 9100
    policy: Policy = Policy.ENFORCE
    on_uncheckable: OnUncheckable = "refuse"
    sampling: Rate = 1.0
    full_check_share: Rate = 0.01
    second_opinions: Literal["off", "flagged", "sampled"] = "flagged"
    drift_false_alarm_rate: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.001
    drift_cusum_limit: Positive = 12.0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Precision | None = None
    cuda_graphs: bool = False
    workers: Annotated[int, Field(ge=1, le=256)] = 1
    threads: Threads = 0
    max_batch_pairs: Count = 64
    max_queue_rows: Count = 1024
    max_client_rows: Count | None = None
    client_header: Annotated[str, Field(pattern=_METADATA_KEY)] | None = None
    max_request_rows: Count = 64
    max_message_bytes: MessageBytes = 64 * 1024 * 1024
    max_image_pixels: Annotated[int, Field(ge=1, le=2**26)] = 2**24
    max_concurrent_requests: Count = 256
    request_timeout_s: Seconds = 30.0
    drain_timeout_s: Seconds = 30.0
    state_dir: Path | None = None
    watch_repository_s: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 0.0
    upstream_poll_s: Seconds = 1.0
    upstream_wait_s: Seconds = 1.0
    upstream_load_s: Seconds = 120.0
    canary_max_error_rate: Rate = 0.01
    canary_max_latency_ratio: Annotated[float, Field(ge=1.0, allow_inf_nan=False)] = 3.0
    canary_max_rejection_rate: Rate = 0.02
    canary_max_disagreement: Rate = 0.1
    canary_min_rows: Count = 200
    admin_port: Port | None = None
    admin_host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    admin_socket: Path | None = None
    admin_token_file: Path | None = None
    admin_tls_cert: Path | None = None
    admin_tls_key: Path | None = None
    admin_tls_client_ca: Path | None = None
    audit_log: Path | None = None
    audit_max_bytes: Count = 64 * 1024 * 1024
    audit_key_file: Path | None = None
    quarantine_dir: Path | None = None
    quarantine_max_items: Count = 10_000
    quarantine_max_bytes: Count = 1024 * 1024 * 1024
    quarantine_max_age_s: Seconds = 2_592_000.0
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "text"] = "json"
    models: dict[str, ModelSettings] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _a_request_fits_into_the_queue(self) -> Settings:
        if self.max_request_rows > self.max_queue_rows:
            raise ValueError(
                f"expected max_request_rows to be at most max_queue_rows, "
                f"got {self.max_request_rows} and {self.max_queue_rows}"
            )
        if self.max_client_rows is not None and self.max_request_rows > self.max_client_rows:
            raise ValueError(
                f"expected max_request_rows to be at most max_client_rows, "
                f"got {self.max_request_rows} and {self.max_client_rows}"
            )
        return self

    @model_validator(mode="after")
    def _nothing_goes_unchecked_that_could_be_refused(self) -> Settings:
        held = {name: (self.policy_of(name), self.sampling_of(name)) for name in self.guarded}
        for name, (policy, rate) in {"": (self.policy, self.sampling), **held}.items():
            if rate < 1.0 and policy is not Policy.MONITOR:
                where = f"models.{name}.sampling" if name else "sampling"
                raise ValueError(
                    f"expected {where} to be 1 with policy '{policy}', got {rate:g}; have everything "
                    f"checked, or set the policy 'monitor'"
                )
        return self

    @model_validator(mode="after")
    def _what_is_guarded_is_guarded_under_every_name(self) -> Settings:
        """Refuse a way around by configuration: the same model of the same server both with and without."""
        guarded = {place: name for name in self.guarded if (place := self.models[name].place_of(name))}
        for name in self.unguarded:
            place = self.models[name].place_of(name)
            if place is not None and (other := guarded.get(place)) is not None:
                raise ValueError(
                    f"models.{name} passes requests without a check to what models.{other} guards, "
                    f"{self.models[name].upstream}; leave out one of them"
                )
        return self

    @model_validator(mode="after")
    def _callers_have_a_door(self) -> Settings:
        tls = [name for name in ("tls_cert", "tls_key", "tls_client_ca") if getattr(self, name) is not None]
        if self.port is None and self.socket is None:
            raise ValueError("expected a port or a socket, got port 'none' and no socket; set one")
        if self.port is None and tls:
            raise ValueError(f"expected a port beside {tls[0]}, got 'none'; set port, or leave it out")
        if self.workers > 1 and (self.socket is not None or self.port is None):
            raise ValueError(
                f"expected a port and no socket with {self.workers} workers, which share a port and cannot "
                f"share a socket; set workers = 1, or leave the socket out"
            )
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Order the sources: flags, environment, TOML file."""
        return (init_settings, env_settings, TomlConfigSettingsSource(settings_cls))

    @property
    def guarded(self) -> tuple[str, ...]:
        """Names of the models with settings of their own that are checked."""
        return tuple(name for name, own in self.models.items() if own.guarded)

    @property
    def unguarded(self) -> tuple[str, ...]:
        """Names of the models whose requests are passed on without a check."""
        return tuple(name for name, own in self.models.items() if not own.guarded)

    def sampling_of(self, model: str) -> float:
        """Return the share of the requests for one model that are checked."""
        own = self.models.get(model)
        return self.sampling if own is None or own.sampling is None else own.sampling

    def full_check_share_of(self, model: str) -> float:
        """Return the share of one model's checked inputs that get all blends."""
        own = self.models.get(model)
        return self.full_check_share if own is None or own.full_check_share is None else own.full_check_share

    def policy_of(self, model: str) -> Policy:
        """Return the policy of one model."""
        own = self.models.get(model)
        return own.policy if own and own.policy else self.policy

    def on_uncheckable_of(self, model: str) -> OnUncheckable:
        """Return what is done with uncheckable inputs of one model."""
        own = self.models.get(model)
        return own.on_uncheckable if own and own.on_uncheckable else self.on_uncheckable


def load_settings(config: Path | None, flags: dict[str, Any]) -> Settings:
    """Read settings.

    Args:
        config: A TOML file, or None.
        flags: Values given on the command line; None values count as not given.

    Raises:
        SettingsError: Naming the setting, what came, and what was expected.
    """
    if config is not None and not config.is_file():
        raise SettingsError(
            f"settings file {config} is not there; give the path of a TOML file with --config"
        )
    own = {"model_config": {**Settings.model_config, "toml_file": config}}
    chosen = type("Settings", (Settings,), own) if config else Settings
    try:
        settings = chosen(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        raise SettingsError(explain(error, _KNOWN)) from error
    except (ValueError, OSError) as error:  # a TOML file or an environment value that cannot be parsed
        where = f"{config} and the GUARD_* variables" if config else "the GUARD_* variables"
        raise SettingsError(f"cannot read the settings ({error}); check {where}") from error
    assert isinstance(settings, Settings)
    return settings


_KNOWN: Final[dict[int, type[BaseModel]]] = {1: Settings, 3: ModelSettings, 4: EncodedImages}
