"""Tells the drift monitor of a model what its checks find, and has a share of the inputs checked in full.

Theory of operation. Every checked input of the version that serves counts; not those of a candidate, nor
those that come back when another version has taken over, whose monitor begins anew. A check stops as soon
as its verdict is certain, so that its p-value is a bound. Scores that show a shift of the whole
distribution have to be exact, so a share of the inputs, picked before anything is known of them, is checked
once more *in full*, all N blends, for which nobody waits: verdict and answer are those of the check that
stopped. It runs while nothing else is in the line, is given up where the line overflows, and is not even
begun while the line is a quarter full.

All of it runs on the event loop, but for :meth:`DriftWatch.watched`, which scrapes read.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from functools import partial
from typing import Final

import numpy as np

from guard.arrays import Images, Logits
from guard.artifact import Profile
from guard.dataplane.drift_counts import DriftCounts
from guard.dataplane.share import Share
from guard.detection.base import Decision
from guard.detection.drift import Budget, DriftMonitor, DriftState
from guard.errors import UnavailableError
from guard.runtime.check_task import Row
from guard.runtime.loader import LoadedModel
from guard.runtime.slot import ModelSlot

__all__ = ["DriftWatch", "budget_of"]

_FULL_SHARE: Final = 4  # full checks begin while no more than this part of the line is taken
_NOTHING: Final = (None, Decision.FAILED)

_log = logging.getLogger(__name__)


class DriftWatch:
    """Watches one model, whatever version of it serves.

    Args:
        slot: Where it is served from; holds a version.
        full: Picks the inputs that are checked in full.
        counts: Told of alarms and exact p-values.
        false_alarm_rate: See :class:`~guard.detection.drift.DriftMonitor`.
        cusum_limit: See there.
    """

    def __init__(
        self,
        slot: ModelSlot[LoadedModel],
        full: Share,
        counts: DriftCounts,
        *,
        false_alarm_rate: float,
        cusum_limit: float,
    ) -> None:
        self._slot = slot
        self._full = full
        self._counts = counts
        self._new = partial(_monitor_of, false_alarm_rate=false_alarm_rate, cusum_limit=cusum_limit)
        model = slot.current
        assert model is not None, "a model is watched once it serves"
        self._held = (model, self._new(model.profile))
        self._told = DriftState.CALM

    def watched(self) -> DriftMonitor:
        """Return the monitor of what serves; a new one where another version has taken over."""
        current = self._slot.current
        model, monitor = self._held
        if current is None or current is model:
            return monitor
        self._held = (current, self._new(current.profile))
        return self._held[1]

    def checked(self, model: LoadedModel, rows: Sequence[Row], logits: Logits | None, images: Images) -> None:
        """Take in what the check found of the rows of a request.

        Args:
            model: Version that was asked.
            rows: What is known of each; those that were not checked to the end do not count.
            logits: What the model answers to each; None where that is not known.
            images: The rows themselves.
        """
        if model is not self._slot.current:
            return
        monitor = self.watched()
        labels = None if logits is None else logits.argmax(axis=1).tolist()
        picked: list[int] = []
        for index, row in enumerate(rows):
            if row.decision not in _NOTHING:
                monitor.checked(row.decision is not Decision.CLEAN, labels and labels[index])
                if self._full.takes():
                    picked.append(index)
        self._tell(model, monitor)
        if picked:
            self._check_in_full(model, images[picked])

    def _check_in_full(self, model: LoadedModel, images: Images) -> None:
        line = model.scheduler
        if line.rows + len(images) > line.max_queue_rows // _FULL_SHARE:
            return
        try:
            submission = line.submit(images, np.ones(len(images), np.bool_), background=True, whole=True)
        except UnavailableError:
            return
        submission.rows.add_done_callback(partial(self._measured, model))

    def _measured(self, model: LoadedModel, rows: asyncio.Future[list[Row]]) -> None:
        if rows.cancelled() or rows.exception() is not None or model is not self._slot.current:
            return
        monitor = self.watched()
        for row in rows.result():
            if row.decision not in _NOTHING:
                p = model.detector.p_value(row.evidence, model.clean_values)
                self._counts.measured(model.name, p)
                monitor.measured(p)
        self._tell(model, monitor)

    def _tell(self, model: LoadedModel, monitor: DriftMonitor) -> None:
        """Count and log that the state has changed."""
        state, told = monitor.finding.state, self._told
        if state is told:
            return
        self._told = state
        fields = {"model": model.name, "version": model.version, "state": state.value}
        if state is DriftState.CALM:
            _log.info("drift alarm is over", extra=fields)
            return
        self._counts.alarm(model.name, state)
        _log.warning("drift alarm", extra={**fields, "reason": monitor.finding.reason})


def budget_of(profile: Profile) -> Budget:
    """Return the rate at which clean inputs may be found suspicious, beyond the boundary of the flag tier."""
    promise = profile.promise
    certified = promise.certified_frr
    return Budget(promise.frr if certified is None else certified, certified is not None)


def _monitor_of(profile: Profile, *, false_alarm_rate: float, cusum_limit: float) -> DriftMonitor:
    return DriftMonitor(
        budget_of(profile),
        classes=profile.output.classes,
        references=profile.promise.n_scores,
        false_alarm_rate=false_alarm_rate,
        cusum_limit=cusum_limit,
    )
