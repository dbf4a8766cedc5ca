"""A running admin face over a control room in memory, and certificates that last as long as the test."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest

from guard.rpc.access import Access
from guard.rpc.admin_server import AdminServer
from guard.rpc.pb.guard_admin_pb2_grpc import GuardAdminStub
from tests.guard.fake_control import FakeControl

TOKEN = "0123456789abcdef" * 4
PATIENCE_S = 60.0


def bearer(token: str = TOKEN) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


def token_file(folder: Path, token: str = TOKEN, mode: int = 0o600) -> Path:
    path = folder / "token"
    path.write_text(f"{token}\n")
    path.chmod(mode)
    return path


@dataclass
class House:
    """A server, its control room, and what was reported of its calls."""

    control: FakeControl
    server: AdminServer
    address: str
    reported: list[tuple[str, str, str]] = field(default_factory=list)
    events: list[tuple[str, dict[str, object]]] = field(default_factory=list)


@asynccontextmanager
async def administering(control: FakeControl | None = None, **access: Any) -> AsyncIterator[House]:
    """Open the admin face for the length of a ``with`` block."""
    control = control or FakeControl()
    reported: list[tuple[str, str, str]] = []
    events: list[tuple[str, dict[str, object]]] = []
    server = AdminServer(
        Access(**access),
        on_rpc=lambda method, model, code, seconds: reported.append((method, model, code)),
        on_event=lambda kind, fields: events.append((kind, dict(fields))),
    )
    await server.start(control)
    address = f"unix:{access['socket']}" if server.port is None else f"127.0.0.1:{server.port}"
    try:
        yield House(control, server, address, reported, events)
    finally:
        await server.stop()


@asynccontextmanager
async def stub_at(address: str, credentials: Any = None) -> AsyncIterator[Any]:
    """Connect a stub; with credentials over TLS."""
    channel = (
        grpc.aio.insecure_channel(address)
        if credentials is None
        else grpc.aio.secure_channel(address, credentials)
    )
    async with channel:
        yield GuardAdminStub(channel)


async def refusal(call: Any) -> tuple[grpc.StatusCode, str]:
    """Return status and words of a call that is refused."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    return refused.value.code(), refused.value.details()


@dataclass(frozen=True)
class Authority:
    """A certificate authority that was made for this test run."""

    folder: Path
    name: str

    @property
    def cert(self) -> Path:
        return self.folder / f"{self.name}.crt"

    @property
    def key(self) -> Path:
        return self.folder / f"{self.name}.key"

    def issue(self, name: str, address: str = "IP:127.0.0.1") -> Authority:
        """Sign a certificate with this common name for an address; return where it lies."""
        end = Authority(self.folder, f"{self.name}-{name}")
        signed = ["-CA", str(self.cert), "-CAkey", str(self.key), "-addext", f"subjectAltName={address}"]
        _openssl(end, name, *signed, "-addext", "basicConstraints=critical,CA:FALSE")
        return end


def make_authority(folder: Path, name: str) -> Authority:
    authority = Authority(folder, name)
    _openssl(authority, name)
    return authority


def _openssl(made: Authority, common_name: str, *options: str) -> None:
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    out = ["-keyout", str(made.key), "-out", str(made.cert), "-days", "2", "-subj", f"/CN={common_name}"]
    subprocess.run(["openssl", "req", "-x509", *curve, *out, *options], check=True, capture_output=True)
    made.key.chmod(0o600)
