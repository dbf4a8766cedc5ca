"""Tells the witnesses what became of the rows of one request."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from guard.arrays import Images
from guard.dataplane.answer import Finding
from guard.detection.threshold import Policy, Verdict
from guard.incidents import NO_LABEL, Incident, Witness
from guard.messages import InferRequest
from guard.metrics import UncheckableReason
from guard.runtime.loader import LoadedModel

__all__ = ["Reporter"]

_log = logging.getLogger(__name__)

_NAN = float("nan")


@dataclass(frozen=True)
class Reporter:
    """Makes an incident of each row that is not simply accepted.

    Attributes:
        images: All rows of the request.
        witnesses: To be told.
    """

    request: InferRequest
    model: LoadedModel
    policy: Policy
    images: Images
    witnesses: Sequence[Witness]

    def unchecked(self, reasons: Mapping[int, UncheckableReason]) -> None:
        """Tell of rows that no check was made of and the model was not asked about."""
        for row, reason in reasons.items():
            self.tell(row, Finding(Verdict.UNCHECKED, _NAN, _NAN, 0), reason.value, NO_LABEL)

    def tell(self, row: int, finding: Finding, reason: str, label: int) -> None:
        """Tell of one row.

        Args:
            row: Its number in the request.
            finding: What was found.
            reason: Why it was not checked; empty where it was.
            label: Class that the model gives it.
        """
        if not self.witnesses:
            return
        source = self.model.profile.input
        incident = Incident(
            at=time.time(),
            model=self.model.name,
            version=self.model.version,
            digest=self.model.digest,
            request_id=self.request.id,
            client=self.request.client,
            row=row,
            verdict=finding.verdict,
            tier=finding.tier,
            policy=self.policy,
            score=finding.score,
            p_value=finding.p_value,
            passes=finding.passes,
            reason=reason,
            label=label,
            layout=source.layout,
            low=source.low,
            high=source.high,
            image=self.images[row],
        )
        for witness in self.witnesses:
            try:
                witness.saw(incident)
            except Exception:  # noqa: BLE001  a record that cannot be kept must not lose an answer
                _log.exception("a witness failed", extra={"witness": type(witness).__name__})
