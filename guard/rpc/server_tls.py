"""TLS of a port of ours: its certificate, and whose client certificates are let in.

The files are looked at again at every handshake, so that a certificate that is renewed in place is shown from
then on. Certificate and key are two files, which nobody can exchange at the same moment: as long as they do
not fit each other the connection is made with the last ones that did, and the log says so.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from guard.errors import SettingsError
from guard.rpc.secrets_on_disk import check_certificates, read_certificate, read_secret

__all__ = ["ServerTls"]

_log = logging.getLogger(__name__)

_Stamp = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class ServerTls:
    """The files of a port, all PEM.

    Attributes:
        prefix: What the names of its settings begin with.
        cert, key: Certificate chain and its key; None for no TLS.
        client_ca: Authorities whose client certificates are let in; None to ask for none.
    """

    prefix: str = ""
    cert: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None

    @property
    def given(self) -> list[str]:
        """Names of the settings that are there."""
        files = {"cert": self.cert, "key": self.key, "client_ca": self.client_ca}
        return [self.setting(name) for name, path in files.items() if path is not None]

    def setting(self, name: str) -> str:
        """Return the name of a setting."""
        return f"{self.prefix}tls_{name}"

    def check(self) -> None:
        """Refuse what is there by halves.

        Raises:
            SettingsError: Naming the setting and what to set.
        """
        if (self.cert is None) != (self.key is None):
            one, other = ("cert", "key") if self.key is None else ("key", "cert")
            raise SettingsError(
                f"{self.setting(one)} is set without {self.setting(other)}; set both or neither"
            )
        if self.client_ca is not None and self.cert is None:
            raise SettingsError(
                f"{self.setting('client_ca')} asks for client certificates, for which the port has to speak "
                f"TLS; set {self.setting('cert')} and {self.setting('key')} as well"
            )

    def credentials(self) -> Any:
        """Return gRPC's server credentials; None where the port speaks no TLS.

        Raises:
            SettingsError: If a file cannot be read or does not fit the others.
        """
        if self.cert is None or self.key is None:
            return None
        renewed = _Renewed(self, self.stamp(), self.read())
        return grpc.dynamic_ssl_server_credentials(
            renewed.configuration, renewed.look, require_client_authentication=self.client_ca is not None
        )

    def read(self) -> Any:
        """Return what the files hold, as gRPC takes it.

        Raises:
            SettingsError: If a file cannot be read or does not fit the others.
        """
        if self.cert is None or self.key is None:
            raise ValueError("expected a certificate and its key, got none; ask for credentials()")
        chain = read_certificate(self.cert, self.setting("cert"))
        key = read_secret(self.key, self.setting("key"))
        roots = (
            None if self.client_ca is None else read_certificate(self.client_ca, self.setting("client_ca"))
        )
        check_certificates(self.cert, self.key, self.client_ca, self.prefix)
        return grpc.ssl_server_certificate_configuration([(key, chain)], roots)

    def stamp(self) -> _Stamp:
        """Return what changes when a file does."""
        return tuple(_stamp_of(path) for path in (self.cert, self.key, self.client_ca) if path is not None)


def _stamp_of(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except OSError:  # who reads it is told why
        return (0, 0, 0)
    return (found.st_mtime_ns, found.st_ino, found.st_size)


class _Renewed:
    """Looks at the files; called by gRPC from threads of its own, one handshake at a time or several."""

    def __init__(self, tls: ServerTls, stamp: _Stamp, configuration: Any) -> None:
        self.configuration = configuration
        self._tls = tls
        self._stamp = stamp
        self._complained: _Stamp | None = None

    def look(self) -> Any:
        """Return what is new; None where nothing is, or what is cannot be used."""
        stamp = self._tls.stamp()
        if stamp == self._stamp:
            return None
        try:
            configuration = self._tls.read()
        except SettingsError as error:
            if stamp != self._complained:
                self._complained = stamp
                _log.error("a renewed certificate cannot be used", extra={"why": str(error)})
            return None
        self._stamp = stamp
        _log.info("a renewed certificate is used", extra={"setting": self._tls.setting("cert")})
        return configuration
