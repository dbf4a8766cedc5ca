"""TLS to a model server: who signs its certificate, and the one that the guard shows."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc

from guard.errors import SettingsError
from guard.rpc.secrets_on_disk import read_certificate, read_secret

__all__ = ["Tls"]


@dataclass(frozen=True)
class Tls:
    """The files that a connection is secured with, all PEM.

    Attributes:
        ca: Authorities that the server's certificate has to be signed by.
        cert, key: Certificate chain that the guard shows, and its key; None to show none.
    """

    ca: Path
    cert: Path | None = None
    key: Path | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """Read the files (blocks).

        Raises:
            SettingsError: If one is not there, others can read the key, or they make no connection.
        """
        roots = read_certificate(self.ca, "upstream_tls_ca")
        key = None if self.key is None else read_secret(self.key, "upstream_tls_key")
        chain = None if self.cert is None else read_certificate(self.cert, "upstream_tls_cert")
        self._check()
        return grpc.ssl_channel_credentials(roots, key, chain)

    def _check(self) -> None:
        """Refuse files that gRPC would complain of at the first connection only."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            context.load_verify_locations(self.ca)
        except (OSError, ValueError) as error:
            raise SettingsError(
                f"upstream_tls_ca {self.ca} holds no certificate in PEM ({error}); give the authority's"
            ) from error
        if self.cert is None:
            return
        try:
            context.load_cert_chain(
                self.cert, self.key, password=lambda: ""
            )  # else OpenSSL asks on the terminal
        except (OSError, ValueError) as error:
            raise SettingsError(
                f"upstream_tls_cert {self.cert} and upstream_tls_key {self.key} are not a certificate and "
                f"its key without a password, both PEM ({error})"
            ) from error
