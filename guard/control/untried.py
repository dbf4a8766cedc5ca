"""Which versions of a model a watcher may take over, and which were tried in vain."""

from __future__ import annotations

from pathlib import Path

from guard.control.candidate import manifest_digest, state_of
from guard.repository import find_versions

__all__ = ["Untried"]


class Untried:
    """Remembers of each version that failed what it was then.

    Args:
        directory: ``<repository>/<model>``.
        failed: What :func:`~guard.control.candidate.state_of` said of each that failed already.
    """

    def __init__(self, directory: Path, failed: dict[str, str]) -> None:
        self._directory = directory
        self._failed = failed
        self._put_off: dict[str, int] = {}

    def newest(self, above: int) -> str | None:
        """Return the highest version above a number, unless it is known to fail (blocks).

        One without a manifest is not there yet; one that failed for a reason of its own is worth trying again
        once a file of it is another, for it may have been copied here file by file, and one that was tried on
        requests once its manifest is. One that is put off is passed over so many times.
        """
        for path in reversed(find_versions(self._directory)):
            if int(path.name) <= above:
                break
            if self._put_off.get(path.name, 0) > 0:
                self._put_off[path.name] -= 1
                continue
            manifest = manifest_digest(path)
            if manifest and self._failed.get(path.name) not in {manifest, state_of(path)}:
                return path.name
        return None

    def failed(self, version: str, what_it_was: str) -> None:
        """Pass a version over while it is what it was: the state of its files, or its manifest's digest."""
        self._failed[version] = what_it_was

    def put_off(self, version: str, looks: int) -> None:
        """Pass a version over so many times."""
        self._put_off[version] = looks
