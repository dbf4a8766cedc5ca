"""What became of an input that was not simply accepted, for those who keep a record of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from guard.detection.threshold import Policy, Tier, Verdict

__all__ = ["NO_LABEL", "Incident", "Witness"]

NO_LABEL = -1


@dataclass(frozen=True, eq=False)
class Incident:
    """One row of a request whose verdict is not ``accept``.

    Attributes:
        at: When it was judged, seconds since the epoch.
        model: Name the model is served under.
        version: Version that judged it.
        digest: SHA-256 of that version's manifest.
        request_id: The caller's id for the request, whatever they wrote there.
        client: Address the request came from, without its port; empty where it is not known.
        row: Number of the row in the request, from 0.
        verdict: What was found.
        tier: The highest boundary that the row is beyond, whatever the policy; None if none is known.
        policy: Of the model, at that time.
        score: The detector's, higher is more suspicious; NaN for a row that was not checked.
        p_value: Of the score; NaN for a row that was not checked.
        passes: Overlays that were looked at.
        reason: Why a row was not checked, a value of
            :class:`~guard.metrics_catalogue.UncheckableReason`; empty where it was.
        label: Class that the model gives the row, :data:`NO_LABEL` where it was not asked.
        layout: Order of the model's axes, the batch included: ``NCHW`` or ``NHWC``.
        low, high: Range of the values that a client may send: one for all, or one for each channel.
        image: The row as the caller sent it, in the model's layout and dtype; a view of the request's bytes,
            to be copied by whoever keeps it.
    """

    at: float
    model: str
    version: str
    digest: str
    request_id: str
    client: str
    row: int
    verdict: Verdict
    tier: Tier | None
    policy: Policy
    score: float
    p_value: float
    passes: int
    reason: str
    label: int
    layout: str
    low: tuple[float, ...]
    high: tuple[float, ...]
    image: np.ndarray


@runtime_checkable
class Witness(Protocol):
    """Keeps a record of incidents."""

    def saw(self, incident: Incident) -> None:
        """Take note; called on the event loop, so it neither blocks nor raises."""
        ...
