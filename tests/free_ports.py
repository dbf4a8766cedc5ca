"""Ports for servers that have to be told which to take, and to take it again when they are started again.

The system gives a connection that goes out, and whoever asks for port 0, one of its own range. A port of that
range may be somebody's before a server takes it, or takes it again; so those beside the range are used.
"""

from __future__ import annotations

import random
import socket
from pathlib import Path

__all__ = ["free_port"]

_LOWEST, _HIGHEST = 10_000, 65_535
_given: set[int] = set()


def free_port() -> int:
    """Return a port that nobody listens on just now, and that nobody gets who does not ask for it."""
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    beside = [port for port in range(_LOWEST, _HIGHEST + 1) if not low <= port <= high]
    for port in random.SystemRandom().sample(beside, len(beside)):
        if port not in _given and _nobody_listens(port):
            _given.add(port)
            return port
    raise AssertionError(f"every port beside {low} to {high} is somebody's")


def _nobody_listens(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
