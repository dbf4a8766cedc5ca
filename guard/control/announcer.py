"""Tells metrics, log and audit log what happens to the versions of a model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from guard.control.api import Step
from guard.control.counts import SwapCounts, SwapOutcome
from guard.control.version_info import version_info
from guard.dataplane.served import ServedModel
from guard.metrics import Metrics
from guard.runtime.loader import LoadedModel

__all__ = ["WORDS", "Announcer", "Event", "OnEvent"]

_log = logging.getLogger(__name__)

OnEvent = Callable[[str, Mapping[str, object]], None]
"""Told the kind of an event, one of :class:`Event`, and its fields; called on the event loop."""


class Event(StrEnum):
    """What can happen to the versions of a model.

    All have the field ``model``, and all but ``loaded`` an ``actor`` (``start``, ``watch`` or who asked).

    - ``loaded`` at the start: version, digest, device, policy, detector, boundary and, of two, block_boundary
      (scores), boundary_bits (STRIP's)
    - ``swapped``, ``rolled_back``: old_version, old_digest, new_version, new_digest, seconds
    - ``upstream_step``, in front of a model server: version, step, seconds, error (empty if it was done)
    - ``candidate_failed``: version, serving (empty at the start), error
    - ``canary_started``: version, digest, share
    - ``canary_stopped``: version, digest, figures
    - ``canary_rolled_back``: version, digest, outcome, why, figures
    - ``promoted``: as ``swapped``
    - ``record_failed``: what served could not be written down, or was not to be read: error
    """

    LOADED = "loaded"
    SWAPPED = "swapped"
    ROLLED_BACK = "rolled_back"
    UPSTREAM_STEP = "upstream_step"
    CANDIDATE_FAILED = "candidate_failed"
    CANARY_STARTED = "canary_started"
    CANARY_STOPPED = "canary_stopped"
    CANARY_ROLLED_BACK = "canary_rolled_back"
    PROMOTED = "promoted"
    RECORD_FAILED = "record_failed"


WORDS: Final[Mapping[str, tuple[int, str]]] = MappingProxyType(
    {
        Event.LOADED: (logging.INFO, "model loaded"),
        Event.SWAPPED: (logging.INFO, "model swapped"),
        Event.ROLLED_BACK: (logging.INFO, "model rolled back"),
        Event.CANARY_STARTED: (logging.INFO, "canary started"),
        Event.CANARY_STOPPED: (logging.INFO, "canary stopped"),
        Event.CANARY_ROLLED_BACK: (logging.ERROR, "canary rolled back"),
        Event.PROMOTED: (logging.INFO, "canary promoted"),
        Event.UPSTREAM_STEP: (logging.INFO, "a step of a swap in front of a model server"),
        Event.CANDIDATE_FAILED: (logging.ERROR, "a version cannot be served"),
        Event.RECORD_FAILED: (logging.ERROR, "the record of what serves cannot be kept"),
    }
)
"""Level and message of the line that the log has for each."""

_OUTCOMES = {
    Event.SWAPPED: SwapOutcome.SWAPPED,
    Event.PROMOTED: SwapOutcome.SWAPPED,
    Event.ROLLED_BACK: SwapOutcome.ROLLED_BACK,
}


class Announcer:
    """Tells what happens to whoever wants to know.

    Args:
        metrics: Told what serves.
        counts: Told what happens.
        on_event: What it raises is logged.
    """

    def __init__(self, metrics: Metrics, counts: SwapCounts, on_event: OnEvent) -> None:
        self._metrics = metrics
        self._counts = counts
        self._on_event = on_event

    def loaded(self, model: LoadedModel, served: ServedModel) -> None:
        """A model serves, for the first time in this process."""
        self._serves(model, served)
        self._counts.add_model(model.name)
        info = version_info(model)
        self._tell(
            Event.LOADED,
            model=model.name,
            version=model.version,
            digest=model.digest,
            device=model.classifier.device,
            policy=served.policy.value,
            detector=model.profile.check.detector,
            boundary=info.boundary,
            block_boundary=info.block_boundary,
            boundary_bits=info.boundary_bits,
        )

    def switched(
        self, kind: Event, old: LoadedModel, new: LoadedModel, served: ServedModel, actor: str, seconds: float
    ) -> None:
        """One version serves in place of another."""
        self._serves(new, served)
        self._counts.swap(new.name, _OUTCOMES[kind])
        self._tell(
            kind,
            model=new.name,
            actor=actor,
            old_version=old.version,
            old_digest=old.digest,
            new_version=new.version,
            new_digest=new.digest,
            seconds=round(seconds, 3),
        )

    def candidate_loaded(self, model: str, seconds: float) -> None:
        """A version was loaded beside the one that serves."""
        self._counts.candidate_loaded(model, seconds)

    def candidate_failed(self, model: str, *, version: str, serving: str, actor: str, error: str) -> None:
        """A version cannot come to serve; ``serving`` is what does, empty where the guard only starts."""
        self._counts.candidate_failed(model)
        if serving:
            self._counts.swap(model, SwapOutcome.FAILED)
        self._tell(
            Event.CANDIDATE_FAILED, model=model, actor=actor, version=version, serving=serving, error=error
        )

    def upstream_step(self, candidate: LoadedModel, step: Step, *, actor: str, error: str) -> None:
        """A step of a swap in front of a model server ended; ``error`` is empty if it was done."""
        self._tell(
            Event.UPSTREAM_STEP,
            model=candidate.name,
            actor=actor,
            version=candidate.version,
            step=step.words,
            seconds=round(step.seconds, 3),
            error=error,
        )

    def canary(self, kind: Event, model: str, candidate: LoadedModel, **fields: object) -> None:
        """A version is tried on a share of the requests, or is not any more."""
        self._tell(kind, model=model, version=candidate.version, digest=candidate.digest, **fields)

    def record_failed(self, model: str, *, actor: str, error: str) -> None:
        """What serves could not be written down, or what is written down could not be read."""
        self._counts.record_failed(model)
        self._tell(Event.RECORD_FAILED, model=model, actor=actor, error=error)

    def _serves(self, model: LoadedModel, served: ServedModel) -> None:
        profile = model.profile
        self._metrics.model_loaded(
            model.name,
            version=model.version,
            digest=model.digest,
            blend=model.profile.check.blend,
            policy=served.policy,
            boundary_bits=profile.boundary.boundary_bits,
            certified_frr=profile.promise.certified_frr,
            score_shift_bits=model.score_shift_bits,
        )
        scheduler = model.scheduler
        self._metrics.watch_queue(model.name, lambda: scheduler.rows, scheduler.max_queue_rows)

    def _tell(self, kind: Event, **fields: object) -> None:
        try:
            self._on_event(kind.value, fields)
        except Exception:  # noqa: BLE001 - whoever listens must not break what is told
            _log.exception("an event of kind %r could not be told", kind.value)
