"""Which versions of a model did not come to serve, and why."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Final

from guard.control.api import Failure
from guard.control.listing import Listed

__all__ = ["Failures"]

_KEPT: Final = 16


class Failures:
    """Versions that failed and did not serve since, each once, in the order in which they failed.

    Args:
        earlier: Those that failed before.
    """

    def __init__(self, earlier: Iterable[Failure] = ()) -> None:
        self._by_version: dict[str, Failure] = {}
        for failure in earlier:
            self._keep(failure)

    def add(self, version: str, error: str) -> Failure:
        """Remember why a version failed just now; of many the latest are kept."""
        failure = Failure(version, time.time(), error)
        self._keep(failure)
        return failure

    def forget(self, version: str) -> None:
        """Remember of a version nothing more: it came to serve after all."""
        self._by_version.pop(version, None)

    def of(self, listed: Listed) -> tuple[Failure, ...]:
        """Return those of versions that are in the repository, as far as that is known."""
        return tuple(one for one in self.all if listed.note or one.version in listed.versions)

    @property
    def all(self) -> tuple[Failure, ...]:
        """All that are remembered, the latest last."""
        return tuple(self._by_version.values())

    def _keep(self, failure: Failure) -> None:
        self.forget(failure.version)
        self._by_version[failure.version] = failure
        if len(self._by_version) > _KEPT:
            self.forget(next(iter(self._by_version)))
