"""One request put to one version of a model, and what comes back; whoever puts it keeps the books."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool

from guard.arrays import Images, Logits
from guard.dataplane.validation import accepted_images, uncheckable_rows
from guard.errors import DeadlineError, UncheckableInputError
from guard.messages import InferRequest
from guard.metrics import UncheckableReason
from guard.runtime.check_task import Row
from guard.runtime.loader import LoadedModel
from guard.runtime.submission import Submission

__all__ = ["Question", "Reply"]


@dataclass(frozen=True, eq=False)
class Reply:
    """What a version says.

    Attributes:
        logits: The model's output rows.
        rows: What the check found, row by row; None where it is still to come.
        submission: What is or was waited for.
        seconds: From the question to this reply.
    """

    logits: Logits
    rows: list[Row] | None
    submission: Submission
    seconds: float


@dataclass(frozen=True, eq=False)
class Question:
    """A request that fits the model.

    Attributes:
        images: All rows of the request, in the model's layout and dtype.
        to_check: Which of them can be checked, bool (n,).
        reasons: Reason and explanation for each of the others.
        sampled: Whether it is checked at all.
    """

    request: InferRequest
    model: LoadedModel
    images: Images
    to_check: Bool[np.ndarray, " n"]
    reasons: Mapping[int, tuple[UncheckableReason, str]]
    sampled: bool = True

    @classmethod
    def of(cls, request: InferRequest, model: LoadedModel, max_rows: int) -> Question:
        """Return what the request asks of the model.

        Args:
            request: The decoded request.
            model: Held open by the caller.
            max_rows: Most rows a request may have.

        Raises:
            InvalidRequestError, UnsupportedRequestError: If the request does not fit.
        """
        images = accepted_images(request, model.profile, max_rows)
        return cls(request, model, images, *uncheckable_rows(images, model.profile.input))

    def unsampled(self) -> Question:
        """Return the same request without a wish for a check."""
        why = (UncheckableReason.NOT_SAMPLED, "was not drawn")
        reasons = dict.fromkeys(range(len(self.images)), why)
        return replace(self, to_check=np.zeros(len(self.images), np.bool_), reasons=reasons, sampled=False)

    @property
    def unfit(self) -> dict[int, UncheckableReason]:
        """Why rows cannot be checked."""
        return {row: reason for row, (reason, _) in self.reasons.items()}

    def require_checkable(self) -> None:
        """Fail closed.

        Raises:
            UncheckableInputError: If any row cannot be checked.
        """
        for row, (_, why) in self.reasons.items():
            raise UncheckableInputError(
                f"row {row} of input {self.request.inputs[0].name!r} {why}, so it cannot be checked for a "
                f"trigger ({len(self.reasons)} such rows); send finite images preprocessed as at calibration"
            )

    async def put(self, limit_s: float, clock: Callable[[], float], *, answer_first: bool) -> Reply:
        """Ask, and wait for the reply; what nobody waits for any more is not run.

        Args:
            limit_s: Longest wait.
            clock: Tells the time, seconds.
            answer_first: Whether the answer is wanted before the check (policy ``monitor``).

        Raises:
            QueueFullError, ShuttingDownError: If the model takes nothing just now.
            CheckFailedError: If it fails on this input.
            DeadlineError: If it takes too long.
        """
        began = clock()
        submission = self.model.scheduler.submit(
            self.images, self.to_check, answer_first=answer_first, client=self.request.client
        )
        try:
            async with asyncio.timeout(limit_s):
                logits = await submission.prediction
                rows = None if answer_first else await submission.rows
        except TimeoutError as error:
            self.model.scheduler.discard(submission)
            raise DeadlineError(
                f"model {self.model.name!r} did not answer within {limit_s:.3f} s; allow more time, "
                f"send fewer rows, or add capacity"
            ) from error
        except asyncio.CancelledError:
            self.model.scheduler.discard(submission)
            raise
        return Reply(logits, rows, submission, clock() - began)
