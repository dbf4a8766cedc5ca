"""From evidence to verdicts: count them, report what is suspicious, refuse where the policy says so."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass

from guard.arrays import Logits
from guard.artifact import ScoreBoundary
from guard.artifact.detector import boundaries_of
from guard.dataplane.answer import Finding
from guard.dataplane.reporter import Reporter
from guard.dataplane.served import ServedModel
from guard.detection.base import Decision
from guard.detection.threshold import Verdict, tier_of, verdict_of
from guard.errors import CheckFailedError, InputRejectedError
from guard.incidents import NO_LABEL
from guard.messages import InferRequest
from guard.metrics import Metrics, Outcome, UncheckableReason
from guard.runtime.check_task import Row
from guard.runtime.loader import LoadedModel

__all__ = ["Judge"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Judge:
    """Judges the rows of one request.

    Attributes:
        unfit: Rows that were not to be checked, and why.
        logits: What the model answers, row by row; None where that is not known.
        reporter: Told of every row that is not simply accepted.
    """

    request: InferRequest
    served: ServedModel
    model: LoadedModel
    metrics: Metrics
    unfit: Mapping[int, UncheckableReason]
    logits: Logits | None
    reporter: Reporter

    def judge(self, rows: list[Row]) -> list[Finding]:
        """Return a finding for each row, counted and reported.

        Raises:
            InputRejectedError: If a row is suspicious and the policy is ``enforce``.
            CheckFailedError: If a row gave no finite entropy and the guard fails closed.
        """
        findings = [self._finding(row) for row in rows]
        failed = [index for index, row in enumerate(rows) if row.decision is Decision.FAILED]
        fails_closed = bool(failed) and self.served.outcome_of_uncheckable is Outcome.REFUSED
        rejected = [index for index, finding in enumerate(findings) if finding.verdict is Verdict.REJECT]
        self._record(rows, findings, Outcome.REFUSED if fails_closed or rejected else Outcome.ANSWERED)
        if fails_closed:
            raise CheckFailedError(
                f"row {failed[0]} of the request gave no finite entropy ({len(failed)} such rows), so it "
                f"cannot be checked for a trigger; send another input, or have the operator look at the model"
            )
        if rejected:
            raise self._rejection(rejected, findings)
        return findings

    def record_later(self, rows: asyncio.Future[list[Row]]) -> None:
        """Count the verdicts of a request that was answered first; a future's done callback."""
        if rows.cancelled():
            return
        if rows.exception() is None:
            findings = [self._finding(row) for row in rows.result()]
            self._record(rows.result(), findings, Outcome.ANSWERED)
            return
        count, why = len(self.reporter.images), UncheckableReason.CHECK_FAILED
        self.metrics.uncheckable(self.model.name, why, Outcome.ANSWERED, count)
        self.metrics.verdicts(self.model.name, Verdict.UNCHECKED, count)
        self.reporter.unchecked(dict.fromkeys(range(count), why))

    def _record(self, rows: list[Row], findings: list[Finding], outcome: Outcome) -> None:
        for index, (row, finding) in enumerate(zip(rows, findings, strict=True)):
            self.metrics.verdicts(self.model.name, finding.verdict, 1)
            reason = ""
            if finding.verdict is Verdict.UNCHECKED:
                why = self._why_unchecked(index, row)
                self.metrics.uncheckable(self.model.name, why, outcome, 1)
                reason = why.value
            else:
                self.metrics.checked(self.model.name, finding.passes, finding.entropy_bits)
            if finding.verdict is not Verdict.ACCEPT and reason != UncheckableReason.NOT_SAMPLED:
                self.reporter.tell(index, finding, reason, self._label(index))
        if self.served.watch is not None:
            self.served.watch.checked(self.model, rows, self.logits, self.reporter.images)
        if self.served.consultant is not None:
            self.served.consultant.judged(self.model, findings, self.reporter.images, self.request.id)
        self._log_suspicious(findings)

    def _label(self, row: int) -> int:
        return NO_LABEL if self.logits is None else int(self.logits[row].argmax())

    def _why_unchecked(self, index: int, row: Row) -> UncheckableReason:
        if row.decision is Decision.FAILED:
            return UncheckableReason.CHECK_FAILED
        # What was fit and still has no decision was given up to make room or to stop (policy `monitor`).
        return self.unfit.get(index, UncheckableReason.QUEUE_FULL)

    def _finding(self, row: Row) -> Finding:
        if row.decision is None or row.decision is Decision.FAILED:
            return Finding(Verdict.UNCHECKED, float("nan"), float("nan"), 0)
        detector, evidence = self.model.detector, row.evidence
        p = detector.p_value(evidence, self.model.clean_values)
        verdict = verdict_of(row.decision, self.served.policy)
        bits = evidence.entropy_sum / evidence.passes
        tier = tier_of(row.decision)
        return Finding(verdict, detector.score(evidence), p, evidence.passes, bits, tier)

    def _log_suspicious(self, findings: list[Finding]) -> None:
        rows = [index for index, one in enumerate(findings) if one.verdict in {Verdict.REJECT, Verdict.FLAG}]
        if not rows:
            return
        _log.warning(
            "suspicious input",
            extra={
                "model": self.model.name,
                "version": self.model.version,
                "request_id": self.request.id,
                "policy": self.served.policy.value,
                "rows": rows,
                "scores": [findings[index].score for index in rows],
                "p_values": [findings[index].p_value for index in rows],
                "tiers": [findings[index].tier for index in rows],
            },
        )

    def _rejection(self, rows: list[int], findings: list[Finding]) -> InputRejectedError:
        several = len(rows) > 1
        them = "them" if several else "it"
        others = f"send the other rows without {them}, or " if len(rows) < len(findings) else ""
        scores = tuple(findings[index].score for index in rows)
        return InputRejectedError(
            f"rejected: row{'s' if several else ''} {', '.join(map(str, rows))} of {len(findings)} "
            f"look{'' if several else 's'} triggered ({self._why(max(scores))}); "
            f"nothing was answered: {others}have the operator set the policy 'flag' to get answers with "
            f"verdicts",
            rows=tuple(rows),
            scores=scores,
        )

    def _why(self, score: float) -> str:
        """Return how far the most suspicious of the rejected rows is beyond the boundary that rejects."""
        *lower, (_, boundary) = boundaries_of(self.model.profile)
        which = f"{'block ' if lower else ''}boundary of model {self.model.name!r}"
        if isinstance(boundary, ScoreBoundary):
            return f"score {score:.4f}, above the {which}, {boundary.boundary:.4f}"
        return f"mean entropy {-score:.4f} bits, below the {which}, {boundary.boundary_bits:.4f}"
