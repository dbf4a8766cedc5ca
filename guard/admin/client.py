"""A client of ``guard.admin.v1`` whose every failure is one line that says what to do."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import grpc

from guard.control.api import CanaryStatus, ModelStatus, SwapReport
from guard.errors import OperationError, SettingsError
from guard.rpc.access import is_loopback
from guard.rpc.admin_codec import decode_canary, decode_report, decode_statuses
from guard.rpc.pb import guard_admin_pb2 as pb
from guard.rpc.pb.guard_admin_pb2_grpc import GuardAdminStub
from guard.rpc.unix_socket import address_of_socket

__all__ = ["AdminClient", "Connection"]

_ASK_AGAIN_S: Final = 0.2
_GRPC_PREFIX: Final = re.compile(r"failed to connect to all addresses; last error: (UNKNOWN|UNAVAILABLE): ")
_OPTIONS: Final = (
    ("grpc.enable_http_proxy", 0),  # an operator's proxy is no way to a guard
    ("grpc.enable_retries", 0),
)


@dataclass(frozen=True)
class Connection:
    """Where a guard is, and what to show it.

    Attributes:
        address: ``HOST:PORT`` or ``unix:PATH``.
        token_file: A file with the bearer token; None to show none.
        tls_ca: Authorities that the guard's certificate is verified by, PEM.
        tls_cert, tls_key: The caller's own certificate and key, PEM.
        timeout_s: Longest wait for an answer.
        wait: Wait for another operation on the model to end, rather than be refused.
    """

    address: str
    token_file: Path | None = None
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    timeout_s: float = 300.0
    wait: bool = False

    @property
    def over_tls(self) -> bool:
        """Whether the guard is spoken to over TLS."""
        return any((self.tls_ca, self.tls_cert, self.tls_key))

    @property
    def is_private(self) -> bool:
        """Whether nobody else can hear what is said."""
        host = self.address.rpartition(":")[0]
        return self.over_tls or self.address.startswith("unix:") or is_loopback(host)


class AdminClient:
    """Asks a running guard; a context manager.

    Every method raises :class:`~guard.errors.OperationError` with the guard's reason, or with why it did not
    answer.

    Args:
        connection: Where, and what to show.

    Raises:
        SettingsError: If the address is none, a file cannot be read, or the token would travel in clear.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        _check_address(connection.address)
        self._metadata = _metadata(connection)
        self._channel = _channel(connection)
        self._stub: Any = GuardAdminStub(self._channel)  # type: ignore[no-untyped-call]

    def __enter__(self) -> AdminClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()

    def status(self, model: str = "") -> tuple[ModelStatus, ...]:
        """Return what is known of one model, or of all."""
        return decode_statuses(self._ask(self._stub.Status, pb.StatusRequest(model=model)))

    def swap(self, model: str, version: str = "", digest: str = "") -> SwapReport:
        """Have a version served, the highest if none is named."""
        request = pb.SwapRequest(model=model, version=version, digest=digest)
        return decode_report(self._ask(self._stub.Swap, request))

    def rollback(self, model: str) -> SwapReport:
        """Have the version served that was served before."""
        return decode_report(self._ask(self._stub.Rollback, pb.RollbackRequest(model=model)))

    def start_canary(self, model: str, version: str, share: float) -> CanaryStatus:
        """Have a candidate answer a share of the requests."""
        request = pb.StartCanaryRequest(model=model, version=version, share=share)
        return decode_canary(self._ask(self._stub.StartCanary, request))

    def promote(self, model: str) -> SwapReport:
        """Have the candidate served that is being tried."""
        return decode_report(self._ask(self._stub.Promote, pb.PromoteRequest(model=model)))

    def stop_canary(self, model: str) -> CanaryStatus:
        """Have the candidate taken off the traffic."""
        return decode_canary(self._ask(self._stub.StopCanary, pb.StopCanaryRequest(model=model)))

    def _ask(self, method: Callable[..., Any], request: Any) -> Any:
        until = time.monotonic() + self._connection.timeout_s
        while True:
            left_s = max(0.0, until - time.monotonic())
            try:
                return method(request, timeout=left_s, metadata=self._metadata)
            except grpc.RpcError as error:
                busy = error.code() is grpc.StatusCode.ABORTED
                if not (busy and self._connection.wait and left_s > _ASK_AGAIN_S):
                    raise OperationError(_why(error, self._connection)) from error
            time.sleep(_ASK_AGAIN_S)


def _check_address(address: str) -> None:
    if not address.startswith("unix:") and not re.fullmatch(r".+:\d+", address):
        raise SettingsError(f"--admin {address!r}: expected HOST:PORT or unix:PATH, such as 127.0.0.1:8002")


def _channel(connection: Connection) -> Any:
    address = connection.address
    if address.startswith("unix:"):
        address = address_of_socket(Path(address.removeprefix("unix:")))
    if not connection.over_tls:
        return grpc.insecure_channel(address, _OPTIONS)
    if (connection.tls_cert is None) != (connection.tls_key is None):
        raise SettingsError("--tls-cert and --tls-key belong together; give both or neither")
    pem = (
        _read(connection.tls_ca, "--tls-ca"),
        _read(connection.tls_key, "--tls-key"),
        _read(connection.tls_cert, "--tls-cert"),
    )
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(*pem), _OPTIONS)


def _metadata(connection: Connection) -> tuple[tuple[str, str], ...]:
    if connection.token_file is None:
        return ()
    if not connection.is_private:
        raise SettingsError(
            f"the token would cross the network to {connection.address} in clear; give --tls-ca, or go "
            f"through a tunnel to 127.0.0.1"
        )
    token = (_read(connection.token_file, "--token-file") or b"").decode(errors="replace").strip()
    if not re.fullmatch(r"[\x21-\x7e]+", token):
        raise SettingsError(f"--token-file {connection.token_file} holds no token; give the guard's own")
    return (("authorization", f"Bearer {token}"),)


def _read(path: Path | None, flag: str) -> bytes | None:
    try:
        return None if path is None else path.read_bytes()
    except OSError as error:
        raise SettingsError(f"{flag} {path} cannot be read ({error.strerror}); give another file") from error


def _why(error: Any, connection: Connection) -> str:
    """Return in one line why there is no answer, and what to do."""
    code, details = error.code(), " ".join((error.details() or "").split())
    details = _GRPC_PREFIX.sub("", details)
    if code is grpc.StatusCode.UNAVAILABLE:
        return f"the guard at {connection.address} cannot be reached ({details}); {_advice(connection)}"
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return f"{connection.address} is no admin port of a guard ({details}); give that with --admin"
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return (
            f"no answer from {connection.address} within {connection.timeout_s:g} s (--timeout); what was "
            f"asked for may still be done: see `guard status`"
        )
    return details or code.name


def _advice(connection: Connection) -> str:
    if connection.address.startswith("unix:"):
        return "is it running, with this admin_socket, and are you its user?"
    if connection.over_tls:
        return (
            "is it running, with this admin_port, and are these the --tls-ca, --tls-cert, --tls-key for it?"
        )
    return "is it running, with this admin_port, and does it ask for TLS (--tls-ca)?"
