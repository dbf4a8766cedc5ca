"""Model servers behind the guard: the other side of the protocol, where the guard is the client."""

from guard.upstream.fleet import Fleet
from guard.upstream.link import Address
from guard.upstream.neighbourhood import Neighbourhood
from guard.upstream.tls import Tls

__all__ = ["Address", "Fleet", "Neighbourhood", "Tls"]
