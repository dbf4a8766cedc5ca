"""Whether there is room to load a model beside the one that serves.

The kernel ends a process that takes more than there is, and with it the model that served. What is needed is
estimated from the files: measured on weights of 200 MB and on overlays of 60 MB, loading takes 5.0 and 5.3
times their size at its peak (the bytes read, the parsed model, the graph with its check, that graph as it is
handed to ONNX Runtime, and the session).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from guard.errors import CandidateError

__all__ = ["BYTES_PER_FILE_BYTE", "available_bytes", "check_memory", "needed_bytes"]

BYTES_PER_FILE_BYTE: Final = 6
"""Memory asked for, per byte of an artifact: what was measured, and some more for the device calls."""

_MIB: Final = 2**20


def check_memory(directory: Path, available: int | None) -> None:
    """Refuse an artifact that does not fit.

    Args:
        directory: The artifact.
        available: Bytes that are free; None where that is not known, which refuses nothing.

    Raises:
        CandidateError: If it needs more.
    """
    needed = needed_bytes(directory)
    if available is not None and needed > available:
        raise CandidateError(
            f"{directory} needs about {needed / _MIB:.0f} MiB of memory to be loaded beside the model that "
            f"serves, {available / _MIB:.0f} MiB are free; give the guard more, or restart it on this version"
        )


def needed_bytes(directory: Path) -> int:
    """Return an estimate of the memory that loading an artifact takes.

    Raises:
        OSError: If the directory cannot be read.
    """
    return BYTES_PER_FILE_BYTE * sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def available_bytes(root: Path = Path("/")) -> int | None:
    """Return how much memory this process may still take; None where the system does not say.

    That is what the kernel calls available or, if it is less, what the control groups of the process leave;
    file caches count as free.

    Args:
        root: Where ``proc`` and ``sys`` are.
    """
    return min((*_of_the_machine(root), *_of_the_groups(root)), default=None)


def _of_the_machine(root: Path) -> Iterator[int]:
    with suppress(OSError, ValueError):
        for line in (root / "proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                yield int(line.split()[1]) * 1024


def _of_the_groups(root: Path) -> Iterator[int]:
    with suppress(OSError, ValueError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                base, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
            elif "memory" in controllers.split(","):
                base = root / "sys/fs/cgroup/memory"
                names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            else:
                continue
            yield from _of_a_group(base, path.strip("/"), names)


def _of_a_group(base: Path, path: str, names: tuple[str, str, str]) -> Iterator[int]:
    """Yield what a group and those around it leave; inside a container only the outermost may be there."""
    limit, usage, cache = names
    group = base / path
    for folder in [group, *(parent for parent in group.parents if parent.is_relative_to(base))]:
        with suppress(OSError, ValueError):  # "max" is no number: no limit here
            most = int((folder / limit).read_text())
            taken = int((folder / usage).read_text())
            figures = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            yield max(0, most - taken + int(figures.get(cache, 0)))
