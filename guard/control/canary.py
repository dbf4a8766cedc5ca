"""One candidate on trial: what is seen of it is counted, exported, and held against its limits."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from guard.control.api import CanaryStatus, VersionInfo
from guard.control.canary_counts import CanaryCounts
from guard.control.canary_tally import Breach, CanaryTally
from guard.dataplane.trial import Pair
from guard.metrics_catalogue import AnsweredBy

__all__ = ["Canary"]


class Canary:
    """Watches a candidate, see :class:`~guard.dataplane.trial.Watcher`.

    Args:
        model: Name it is served under.
        candidate: The version that is tried.
        share: Share of the requests that it answers.
        tally: Counts, and knows the limits.
        counts: The same for the metrics.
        on_breach: Told of the first limit that is exceeded; it takes the candidate off the traffic.
    """

    def __init__(
        self,
        model: str,
        candidate: VersionInfo,
        share: float,
        tally: CanaryTally,
        counts: CanaryCounts,
        on_breach: Callable[[Breach], None],
    ) -> None:
        self.candidate = candidate
        self.running = True
        self._model = model
        self._share = share
        self._tally = tally
        self._counts = counts
        self._on_breach = on_breach
        self._started_at = time.time()
        self._outcome = ""

    def status(self) -> CanaryStatus:
        """Return what is known of it."""
        figures = self._tally.figures()
        return CanaryStatus(
            self.candidate, self._share, self._started_at, self.running, self._outcome, figures
        )

    def end(self, outcome: str) -> None:
        """Count nothing any more.

        Args:
            outcome: Why it ended.
        """
        self.running = False
        self._outcome = outcome

    def asked(self) -> None:
        """Note that a request was put to the candidate."""
        if self.running:
            self._tally.asked()

    def answered(self, seconds: float) -> None:
        """Note that it answered one."""
        if self.running:
            self._tally.answered(seconds)
            self._counts.answered(self._model, AnsweredBy.CANDIDATE, seconds)
            self._judge()

    def failed(self, error: Exception) -> None:
        """Note that it failed on one."""
        if self.running:
            self._tally.failed()
            self._counts.failed(self._model)
            self._judge()

    def late(self, error: Exception, allowed_s: float) -> None:
        """Note that it did not answer one in the seconds that the caller's own deadline left it.

        That is a failure where the version that serves would have had time enough, and says nothing of the
        candidate where it would not.
        """
        if self._tally.too_long(allowed_s):
            self.failed(error)

    def current_answered(self, seconds: float) -> None:
        """Note that the current version answered a request."""
        if self.running:
            self._tally.current_answered(seconds)
            self._counts.answered(self._model, AnsweredBy.CURRENT, seconds)

    def compared(self, pairs: Sequence[Pair]) -> None:
        """Note what both made of the rows of a request."""
        if self.running:
            self._tally.compared(pairs)
            for pair in pairs:
                self._counts.compared(self._model, pair)
            self._counts.entropy_difference(self._model, self._tally.mean_entropy_difference_bits)
            self._judge()

    def dropped(self) -> None:
        """Note that a request could not be compared."""
        if self.running:
            self._tally.dropped()
            self._counts.dropped(self._model)

    def _judge(self) -> None:
        breach = self._tally.breach()
        if breach is not None:
            self._on_breach(breach)
