"""Which version of a model is served when the guard starts: the last good one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from guard.control.api import Failure
from guard.control.candidate import check_digest, is_its_own, reason_of, state_of
from guard.control.failures import Failures
from guard.control.served_versions import ModelRecord, ServedVersion
from guard.control.tools import Tools
from guard.errors import ArtifactError, MissingFileError, SettingsError
from guard.repository import find_versions
from guard.runtime.loader import LoadedModel

__all__ = ["Started", "start_model", "versions_to_try"]


@dataclass
class Started:
    """A model that was loaded at the start.

    Attributes:
        record: What served as this model before, with what serves now.
        failures: Versions that were tried in vain, in that order.
        failed: What :func:`~guard.control.candidate.state_of` said of each that failed for a reason of its
            own.
    """

    model: LoadedModel
    record: ModelRecord
    failures: tuple[Failure, ...] = ()
    failed: dict[str, str] = field(default_factory=dict)


async def start_model(name: str, directory: Path, record: ModelRecord | None, tools: Tools) -> Started:
    """Load the recorded version of a model or, where it cannot be served, the next best one.

    Args:
        name: Name to serve it under.
        directory: ``<repository>/<model>``.
        record: What served before the restart; None if that is not known.
        tools: What to work with.

    Raises:
        ArtifactError: If none can be served: what is wrong with each, in the order in which they were tried.
        SettingsError: If the device asked for is not there.
    """
    versions = await asyncio.to_thread(find_versions, directory)
    digests = {past.version: past.digest for past in ((record.current, *record.history) if record else ())}
    first_error: Exception | None = None  # one alone: an error keeps alive what had been loaded
    reasons: list[str] = []
    failures = Failures()
    failed: dict[str, str] = {}
    for path in versions_to_try(versions, record):
        approve = partial(check_digest, digest=digests.get(path.name, ""))
        state = await asyncio.to_thread(state_of, path)
        try:
            model = await asyncio.to_thread(tools.load, name, path, approve)
        except SettingsError:
            raise  # the device is not there, for no version
        except Exception as error:  # noqa: BLE001 - whatever is wrong with it, another may do
            first_error = first_error or error
            failure = failures.add(path.name, reason_of(error))
            reasons.append(f"version {path.name!r}: {failure.error}")
            if is_its_own(error):
                failed[path.name] = state
            tools.announcer.candidate_failed(
                name, version=path.name, serving="", actor="start", error=failure.error
            )
            continue
        return Started(model, _record_of(model, record), failures.all, failed)
    if first_error is None:
        raise MissingFileError(f"{directory} holds no version any more; calibrate again")
    if len(reasons) == 1:
        raise first_error
    raise _none_is_fit(name, reasons) from first_error


def versions_to_try(versions: Sequence[Path], record: ModelRecord | None) -> list[Path]:
    """Return the versions in the order in which they are tried.

    Without a record the highest is tried first. With one: what served last, what served before that, what is
    lower, and only then what is higher, which was rolled back from or is new and nobody asked for.

    Args:
        versions: Directories of the versions, ascending.
        record: What served before; None if that is not known.
    """
    descending = sorted(versions, key=lambda path: int(path.name), reverse=True)
    if record is None:
        return descending
    there = {path.name: path for path in versions}
    current = int(record.current.version)
    served = [past.version for past in (record.current, *record.history)]
    lower = [path.name for path in descending if int(path.name) < current]
    higher = [path.name for path in descending if int(path.name) > current]
    return [there[name] for name in dict.fromkeys([*served, *lower, *higher]) if name in there]


def _none_is_fit(name: str, reasons: Sequence[str]) -> ArtifactError:
    return ArtifactError(
        f"no version of model {name!r} can be served, expected one that is as calibration wrote it; restore "
        f"one or calibrate again: {'; '.join(reasons)}"
    )


def _record_of(model: LoadedModel, record: ModelRecord | None) -> ModelRecord:
    """Return the record with what serves now, which is not gone back to any more."""
    now = ServedVersion(version=model.version, digest=model.digest)
    if record is None:
        return ModelRecord.of(now)
    history = tuple(past for past in record.history if past.version != now.version)
    return ModelRecord(current=now, history=history, newest=max(record.newest, int(now.version)))
