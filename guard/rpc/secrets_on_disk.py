"""Secrets that lie in files: a token, the key of a certificate."""

from __future__ import annotations

import hashlib
import re
import ssl
from pathlib import Path
from typing import Final

from guard.errors import SettingsError
from guard.secret_files import check_secret

__all__ = ["MIN_TOKEN_CHARACTERS", "check_certificates", "read_certificate", "read_secret", "token_digest"]

MIN_TOKEN_CHARACTERS: Final = 32
_TOKEN: Final = re.compile(r"[\x21-\x7e]+")


def read_secret(path: Path, setting: str) -> bytes:
    """Return the bytes of a file that only those who are meant to can read.

    Raises:
        SettingsError: If it is not there, or anybody on the machine may read or write it.
    """
    data = read_certificate(path, setting)
    check_secret(path, setting)
    return data


def read_certificate(path: Path, setting: str) -> bytes:
    """Return the bytes of a file.

    Raises:
        SettingsError: If it is not there or cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingsError(f"{setting} {path} cannot be read ({error.strerror}); see to it") from error


def token_digest(path: Path) -> bytes:
    """Return the SHA-256 of the token in a file.

    Raises:
        SettingsError: If the file is not secret, or what is in it is no token.
    """
    setting = "admin_token_file"
    token = read_secret(path, setting).decode(errors="replace").strip()
    advice = "make one with `openssl rand -hex 32`"
    if len(token) < MIN_TOKEN_CHARACTERS:
        raise SettingsError(
            f"{setting} {path}: expected a token of at least {MIN_TOKEN_CHARACTERS} characters, "
            f"got {len(token)}; {advice}"
        )
    if not _TOKEN.fullmatch(token):
        raise SettingsError(
            f"{setting} {path}: expected one token of printable ASCII without spaces, "
            f"got something else; {advice}"
        )
    return hashlib.sha256(token.encode()).digest()


def check_certificates(cert: Path, key: Path, client_ca: Path | None, prefix: str) -> None:
    """Refuse files that no connection could be made with: gRPC would tell only whoever connects.

    Args:
        cert: Certificate chain.
        key: Its key.
        client_ca: Authorities of client certificates; None for none.
        prefix: What the names of the settings begin with.

    Raises:
        SettingsError: Naming the file.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(cert, key, password=lambda: "")  # else OpenSSL asks on the terminal
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"{prefix}tls_cert {cert} and {prefix}tls_key {key} are not a certificate and its key without a "
            f"password, both PEM ({error})"
        ) from error
    if client_ca is None:
        return
    try:
        context.load_verify_locations(client_ca)
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"{prefix}tls_client_ca {client_ca} holds no certificate in PEM ({error})"
        ) from error
