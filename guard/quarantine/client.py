"""Callers without their addresses: the same one can be told again, and not who it was."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from pathlib import Path
from typing import Final

from guard.quarantine.disk import read_plain, write_at_once

__all__ = ["client_key", "hashed_client"]

_KEY_BYTES: Final = 32


def client_key(root: Path) -> bytes:
    """Return the key of a quarantine folder, made if there is none; hold the folder's lock.

    Raises:
        OSError: If it cannot be read or made.
        ValueError: If what is there is no key.
    """
    path = root / "client.key"
    if not path.exists():
        write_at_once(str(path), secrets.token_hex(_KEY_BYTES).encode())
    text = read_plain(path, 4096).decode("latin-1").strip()
    if not re.fullmatch(rf"[0-9a-f]{{{2 * _KEY_BYTES}}}", text):
        raise ValueError(f"{path} is no key of {2 * _KEY_BYTES} hex digits; remove it to have one made")
    return bytes.fromhex(text)


def hashed_client(key: bytes, client: str) -> str:
    """Return the HMAC-SHA256 of an address, 64 hex digits; nothing where it is not known."""
    return hmac.new(key, client.encode(errors="replace"), hashlib.sha256).hexdigest() if client else ""
