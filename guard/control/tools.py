"""What keepers work with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from guard.control.announcer import Announcer
from guard.control.candidate import Load
from guard.control.memory import available_bytes
from guard.control.model_servers import ModelServers, NoModelServers
from guard.control.served_versions import ServedVersions

__all__ = ["Tools"]


@dataclass(frozen=True)
class Tools:
    """What the keepers of all models share.

    Attributes:
        load: Loads a version.
        announcer: Told what happens.
        versions: Keeps what serves on disk.
        drain_timeout_s: Longest wait for the requests of a version that was swapped out.
        free_bytes: Memory there is.
        model_servers: What answers in place of models that are not run here.
    """

    load: Load
    announcer: Announcer
    versions: ServedVersions
    drain_timeout_s: float
    free_bytes: Callable[[], int | None] = available_bytes
    model_servers: ModelServers = field(default_factory=NoModelServers)
