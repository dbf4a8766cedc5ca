"""Who a caller is, for taking turns and keeping records: its address, or what a proxy says it is."""

from __future__ import annotations

import hashlib
from typing import Final

from guard.rpc.outcome import Context, address_of

__all__ = ["client_of"]

_MAX_CHARACTERS: Final = 128


def client_of(context: Context, header: str | None) -> str:
    """Return the name of the client.

    Args:
        context: Of its call.
        header: Metadata key in which a trusted proxy says who asks; None where there is no proxy. Where a
            call has it several times the last one counts, which is what a proxy adds; where it has none,
            the address does.

    Returns:
        At most 128 characters; of what is longer, its SHA-256.
    """
    named = ""
    if header is not None:
        for key, value in context.invocation_metadata() or ():
            if key == header:
                named = value if isinstance(value, str) else value.decode(errors="replace")
    if not named:
        return address_of(context.peer())
    return named if len(named) <= _MAX_CHARACTERS else f"sha256:{hashlib.sha256(named.encode()).hexdigest()}"
