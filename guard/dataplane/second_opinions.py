"""Asks capabilities that cost passes what they think of inputs that were judged already.

Theory of operation. The verdict is the check's alone and is fixed before anybody is asked here; nobody
waits for what comes back, and nothing is changed by it. Asked about are inputs that were found suspicious
and, where that is wanted, a share of those accepted. They wait in a short queue, beyond which they are
dropped and counted. One thread a model makes changed copies of them and scores what the model says of
those. The model is asked through its waiting line, in the background: that runs while nothing else is
there, is given up where the line overflows, and not even begun while the line is a quarter full. So the
traffic comes first; it waits for one device call at most. Amplified copies of the model are run by the
thread itself. It has no lower priority than others: whoever has, and is kept from the processor while it
holds Python's lock, keeps the event loop waiting (up to half a second, measured on one busy core).

::

    event loop                                   │ thread of the model
    judged() ─ queue, at most MOST_WAITING rows ─┼─► changed copies of the rows
    line.submit(background) ◄────────────────────┼── ask the model     (waits for the line)
    counts, log, audit log  ◄────────────────────┴── p-values against clean scores
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Final

import numpy as np
from jaxtyping import Float64, Int64

from guard.arrays import Images, Logits
from guard.dataplane.answer import Finding
from guard.dataplane.opinion_counts import CHECKED, OpinionCounts
from guard.dataplane.share import Share
from guard.detection.base import predicted_classes
from guard.detection.capabilities.opinion import opinion_p_values
from guard.detection.threshold import Verdict
from guard.errors import CheckFailedError, UnavailableError
from guard.metrics_catalogue import SecondOpinionOutcome
from guard.runtime.loader import LoadedModel
from guard.runtime.slot import ModelSlot

__all__ = ["MOST_WAITING", "SECOND_OPINION", "Consultant", "close_all"]

MOST_WAITING: Final = 64
"""Inputs that may wait or be asked about, a model."""

SECOND_OPINION: Final = "second_opinion"
"""Kind of record in the audit log."""

_AT_ONCE: Final = 16  # inputs asked about together
_BUSY_SHARE: Final = 4  # nothing is asked while more than this part of the line is taken
_JOIN_S: Final = 5.0

_Said = Mapping[str, Float64[np.ndarray, " n"] | None]
"""p-values by name; None for one that was not asked, or not to the end."""

_log = logging.getLogger(__name__)


class _GivenUpError(Exception):
    """There is no time for it now."""


@dataclass(frozen=True, eq=False)
class _Case:
    """An input that others are asked about: a row of a request."""

    model: LoadedModel
    request_id: str
    row: int
    finding: Finding
    image: np.ndarray


class Consultant:
    """Asks about the inputs of one model, whatever version of it serves; used on the event loop.

    Args:
        slot: Where it is served from.
        sampled: Picks the accepted inputs that are asked about.
        counts: Told of every opinion.
        tell: Writes down what was said of an input, by kind of record and its fields.
        held: Whether the model is to be left alone just now.
    """

    def __init__(
        self,
        slot: ModelSlot[LoadedModel],
        sampled: Share,
        counts: OpinionCounts,
        tell: Callable[[str, Mapping[str, object]], None],
        held: Callable[[], bool] = lambda: False,
    ) -> None:
        self._slot = slot
        self._sampled = sampled
        self._counts = counts
        self._tell = tell
        self._held = held
        self._cases: SimpleQueue[_Case | None] = SimpleQueue()
        self._waiting = 0
        self._thread: threading.Thread | None = None
        self._over = False

    def judged(
        self, model: LoadedModel, findings: Sequence[Finding], images: Images, request_id: str
    ) -> None:
        """Have others asked about some rows of a request that was judged.

        Args:
            model: Version that judged; only the one that serves has others to ask.
            findings: Of every row.
            images: The rows.
            request_id: Its caller's.
        """
        if self._over or not model.opinions.each or model is not self._slot.current:
            return
        rows = [row for row, finding in enumerate(findings) if self._picks(finding.verdict)]
        if not rows:
            return
        line = model.scheduler
        busy = line.rows > line.max_queue_rows // _BUSY_SHARE
        room = 0 if busy or not self._has_begun(model.name) else MOST_WAITING - self._waiting
        taken, dropped = rows[:room], rows[room:]
        for row, one in ((row, one) for row in dropped for one in model.opinions.each):
            self._counts.heard(model.name, one.name, findings[row].verdict, SecondOpinionOutcome.DROPPED)
        if taken:
            self._put(
                [
                    _Case(model, request_id, row, findings[row], image)
                    for row, image in zip(taken, images[taken], strict=True)
                ]
            )

    def _put(self, cases: Sequence[_Case]) -> None:
        self._waiting += len(cases)
        for case in cases:
            self._cases.put(case)

    def _has_begun(self, name: str) -> bool:
        """Return whether there is a thread; it begins with the first input, if the system allows another."""
        if self._thread is None:
            loop = asyncio.get_running_loop()
            thread = threading.Thread(
                target=self._run, args=(loop,), name=f"second-opinions-{name}", daemon=True
            )
            try:
                thread.start()
            except RuntimeError:
                _log.warning("there may be no more threads, so no second opinions", extra={"model": name})
                return False
            self._thread = thread
        return True

    async def close(self) -> None:
        """Ask nothing any more; what waits is given up."""
        self._over = True
        if self._thread is not None:
            self._cases.put(None)
            await asyncio.to_thread(self._thread.join, _JOIN_S)

    def _picks(self, verdict: Verdict) -> bool:
        return verdict in CHECKED and (verdict is not Verdict.ACCEPT or self._sampled.takes())

    # In the thread

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        while (case := self._cases.get()) is not None:
            cases = [case, *self._more(case)]
            said = self._ask(cases, loop)
            with suppress(RuntimeError):  # the loop is closed: nobody is left to tell
                loop.call_soon_threadsafe(self._take_in, cases, said)

    def _more(self, first: _Case) -> list[_Case]:
        """Return cases of the same version that wait besides, as many as are asked about together."""
        cases: list[_Case] = []
        at_once = min(_AT_ONCE, first.model.scheduler.max_queue_rows // _BUSY_SHARE)
        while len(cases) < at_once - 1:
            try:
                case = self._cases.get_nowait()
            except Empty:
                break
            if case is None or case.model is not first.model:
                self._cases.put(case)
                break
            cases.append(case)
        return cases

    def _ask(self, cases: Sequence[_Case], loop: asyncio.AbstractEventLoop) -> _Said:
        model, images = cases[0].model, np.stack([case.image for case in cases])
        asked = model.opinions.asked(lambda rows: self._predicted(model, rows, loop))
        said: dict[str, Float64[np.ndarray, " n"] | None] = {one.name: None for one in model.opinions.each}
        predicted: Int64[np.ndarray, " n"] | None = None
        for one in model.opinions.each:
            try:
                predicted = predicted_classes(asked.model(images)) if predicted is None else predicted
                said[one.name] = opinion_p_values(one.opinion.scores(images, predicted, asked), one.clean)
            except CheckFailedError:  # the device failed, which is in the log
                said[one.name] = np.full(len(images), np.nan)
            except (_GivenUpError, UnavailableError):
                break
            except Exception:  # noqa: BLE001 - whatever it is must not end the thread
                if self._over or model is not self._slot.current:  # it may be closed by now
                    break
                _log.exception("a second opinion failed", extra={"model": model.name, "capability": one.name})
                said[one.name] = np.full(len(images), np.nan)
        return said

    def _predicted(self, model: LoadedModel, images: Images, loop: asyncio.AbstractEventLoop) -> Logits:
        """Have the event loop put images in line, and wait for what the model says."""
        gone = self._over or model is not self._slot.current or loop.is_closed()
        if gone or self._held():
            raise _GivenUpError
        return asyncio.run_coroutine_threadsafe(_in_background(model, images), loop).result()

    # On the event loop again

    def _take_in(self, cases: Sequence[_Case], said: _Said) -> None:
        self._waiting -= len(cases)
        for place, case in enumerate(cases):
            self._count(case, {name: _at(found, place) for name, found in said.items()})

    def _count(self, case: _Case, p_values: Mapping[str, float | None]) -> None:
        """Count and tell what was said of an input."""
        model, verdict = case.model, case.finding.verdict
        suspicious, level = verdict is not Verdict.ACCEPT, model.profile.promise.frr
        for name, p in p_values.items():
            self._counts.heard(model.name, name, verdict, _outcome(p, level, suspicious))
            if p is not None and not np.isnan(p) and not suspicious:
                self._counts.accepted(model.name, name, p)
        known = {name: p for name, p in p_values.items() if p is not None and not np.isnan(p)}
        everybody = len(known) == len(p_values) and all(p <= level for p in known.values())
        if known and (suspicious or everybody):
            self._tell(
                SECOND_OPINION,
                {
                    "model": model.name,
                    "version": model.version,
                    "request_id": case.request_id,
                    "row": case.row,
                    "verdict": verdict.value,
                    "p_value": case.finding.p_value,
                    "second_opinions": known,
                },
            )


async def close_all(consultants: Iterable[Consultant]) -> None:
    """Have nobody ask anything any more."""
    await asyncio.gather(*(consultant.close() for consultant in consultants))


async def _in_background(model: LoadedModel, images: Images) -> Logits:
    line = model.scheduler
    if line.rows + len(images) > line.max_queue_rows // _BUSY_SHARE:
        raise _GivenUpError
    submission = line.submit(images, np.zeros(len(images), np.bool_), background=True)
    await submission.rows
    if not submission.prediction.done():  # it had to make room
        raise _GivenUpError
    return submission.prediction.result()


def _at(found: Float64[np.ndarray, " n"] | None, place: int) -> float | None:
    return None if found is None else float(found[place])


def _outcome(p: float | None, level: float, suspicious: bool) -> SecondOpinionOutcome:
    if p is None:
        return SecondOpinionOutcome.DROPPED
    if np.isnan(p):
        return SecondOpinionOutcome.FAILED
    return SecondOpinionOutcome.AGREES if (p <= level) == suspicious else SecondOpinionOutcome.DISAGREES
