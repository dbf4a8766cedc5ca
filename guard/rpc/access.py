"""Who may operate a running guard.

Theory of operation. The admin face has two doors, and neither is open by default.

* A *unix socket* (mode 0600): the kernel lets in the guard's own user and root, nobody else.
* A *TCP port*: a bearer token, a client certificate of a given authority, or both. There is no third way,
  not even on the loopback interface, where every process of the machine could knock. A token never crosses
  a network in clear: beyond loopback the port speaks TLS or does not open.

A token, where one is set, is asked for at both doors, of every call, before the call is read or even found
to exist. Who has none is turned away at once and takes up no room: only calls that were let in are counted
against the limit of calls at a time (:mod:`guard.rpc.reception`). Certificates are verified in the
handshake, so no call comes without one.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, runtime_checkable

import grpc

from guard.errors import AccessDeniedError, SettingsError
from guard.rpc.outcome import Context, OnRpc, answering, ignore_rpc
from guard.rpc.secrets_on_disk import token_digest
from guard.rpc.server_tls import ServerTls

__all__ = [
    "DENIED",
    "Access",
    "AdminContext",
    "OnEvent",
    "TokenKeeper",
    "actor_of",
    "ignore_event",
    "is_loopback",
]

DENIED: Final = "admin_denied"
"""Kind of the event that calls were turned away: how many since the last such event, and where from."""

OnEvent = Callable[[str, Mapping[str, object]], None]
"""Told the kind of an event and its fields; called on the event loop, so it neither blocks nor raises."""

_DENIALS_TOLD_EVERY_S: Final = 60.0
_MAX_ACTOR_CHARACTERS: Final = 100
_Handler = Any  # grpc.RpcMethodHandler, which grpc does not type


@dataclass(frozen=True)
class Access:
    """What is asked of whoever knocks, and where.

    Attributes:
        host: Address of the TCP port.
        port: TCP port, 0 for any that is free; None for none.
        socket: Path of the unix socket; None for none.
        token_file: A file with the bearer token; None for none.
        tls_cert, tls_key: Certificate chain and key of the TCP port, PEM; None for none.
        tls_client_ca: Authorities whose client certificates are let in, PEM; None to ask for none.
    """

    host: str = "127.0.0.1"
    port: int | None = None
    socket: Path | None = None
    token_file: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None

    @property
    def is_open(self) -> bool:
        """Whether there is an admin face at all."""
        return self.port is not None or self.socket is not None

    def check(self) -> None:
        """Refuse what would let in more than was meant, and what would let in nobody.

        Raises:
            SettingsError: Naming the setting and what to set.
        """
        self._refuse_what_has_no_effect()
        self._tls.check()
        if self.port is not None:
            self._refuse_an_open_port()

    def token(self) -> bytes | None:
        """Return the SHA-256 of the token, None where there is none.

        Raises:
            SettingsError: If the file is not secret or holds no token.
        """
        return None if self.token_file is None else token_digest(self.token_file)

    def credentials(self) -> Any:
        """Return gRPC's server credentials for the TCP port; None where it speaks no TLS.

        Raises:
            SettingsError: If a file cannot be read or does not fit the others.
        """
        return self._tls.credentials()

    @property
    def _tls(self) -> ServerTls:
        return ServerTls("admin_", self.tls_cert, self.tls_key, self.tls_client_ca)

    def _refuse_what_has_no_effect(self) -> None:
        given = self._tls.given
        if self.port is None and given:
            raise SettingsError(f"{given[0]} is set and admin_port is not; set admin_port, or leave it out")
        if not self.is_open and self.token_file is not None:
            raise SettingsError(
                "admin_token_file is set, but neither admin_port nor admin_socket; set one, or leave it out"
            )

    def _refuse_an_open_port(self) -> None:
        if self.token_file is None and self.tls_client_ca is None:
            raise SettingsError(
                "admin_port would let in whoever reaches it; set admin_token_file, or admin_tls_client_ca "
                "with admin_tls_cert and admin_tls_key, or use admin_socket instead"
            )
        if self.tls_cert is None and not is_loopback(self.host):
            raise SettingsError(
                f"the admin token would cross the network in clear on admin_host {self.host!r}; "
                f"set admin_tls_cert and admin_tls_key, or admin_host = '127.0.0.1'"
            )


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine and nothing else, by its looks.

    Examples:
        >>> [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "guard")]
        [True, True, True, False, False]
    """
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def ignore_event(kind: str, fields: Mapping[str, object]) -> None:
    """Take note of nothing."""


@runtime_checkable
class AdminContext(Context, Protocol):
    """A call's context that also tells who the other end has shown to be."""

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """Return what the handshake established."""
        ...


def actor_of(context: AdminContext) -> str:
    """Return who asks: ``certificate:<common name>``, ``unix`` or ``token``, by the surest that is known."""
    if context.peer().startswith("unix:"):
        return "unix"
    for key in ("x509_common_name", "x509_subject_alternative_name"):
        for name in context.auth_context().get(key, ()):
            return f"certificate:{name.decode(errors='replace')[:_MAX_ACTOR_CHARACTERS]}"
    return "token"


class TokenKeeper(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Turns away every call without the token.

    Args:
        digest: SHA-256 of the token.
        on_rpc: Told of each call that is turned away.
        on_event: Told of the first at once, and then how many there were, once a minute at most.
        clock: Seconds, for that minute.
    """

    def __init__(
        self,
        digest: bytes,
        *,
        on_rpc: OnRpc = ignore_rpc,
        on_event: OnEvent = ignore_event,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._digest = digest
        self._on_rpc = on_rpc
        self._clock = clock
        self._on_event = on_event
        self._untold = 0
        self._last_from = ""
        self._tell_at = clock()
        self._timer: asyncio.TimerHandle | None = None

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[_Handler]], handler_call_details: Any
    ) -> _Handler:
        """Return what answers the call, or a refusal."""
        metadata = handler_call_details.invocation_metadata or ()
        given = [value for name, value in metadata if name == "authorization"]
        why = self._why_not(given)
        return (
            self._denied(handler_call_details.method, why)
            if why
            else await continuation(handler_call_details)
        )

    def _why_not(self, given: list[str | bytes]) -> str:
        """Return why a call is turned away, nothing if it is not."""
        if len(given) != 1:
            return "this port asks for a token, as metadata 'authorization: Bearer …' (guard: --token-file)"
        value = given[0].encode() if isinstance(given[0], str) else given[0]
        scheme, _, token = value.partition(b" ")
        right = hmac.compare_digest(hashlib.sha256(token.strip()).digest(), self._digest)
        if scheme.lower() == b"bearer" and right:
            return ""
        return "the token is not this guard's; give the one of its admin_token_file (guard: --token-file)"

    def _denied(self, path: str, why: str) -> _Handler:
        async def refuse(_requests: Any, context: Context) -> None:  # without waiting for what is asked
            async with answering(context, path.rpartition("/")[2], self._on_rpc):
                self._note(context.peer())
                raise AccessDeniedError(why)

        return grpc.stream_stream_rpc_method_handler(refuse)  # whatever the caller thinks the method is

    def _note(self, peer: str) -> None:
        self._untold += 1
        self._last_from = peer
        left_s = self._tell_at - self._clock()
        if left_s <= 0:
            self.tell()
        elif self._timer is None:  # so that the last of a burst are told of, though nobody knocks after them
            self._timer = asyncio.get_running_loop().call_later(left_s, self.tell)

    def tell(self) -> None:
        """Tell of the calls that were turned away and not told of yet, if there are any."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._untold:
            self._on_event(DENIED, {"denied": self._untold, "last_from": self._last_from})
            self._untold, self._tell_at = 0, self._clock() + _DENIALS_TOLD_EVERY_S
