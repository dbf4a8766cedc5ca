"""Requests that a model server answers with nobody looking into them: those that sampling left out."""

from __future__ import annotations

import time

from guard.dataplane.answer import Finding, add_findings
from guard.dataplane.losses import shed_reason
from guard.dataplane.model_server import ModelServer
from guard.dataplane.relay import require_understood
from guard.dataplane.served import ServedModel
from guard.dataplane.validation import unread_rows
from guard.detection.threshold import Verdict
from guard.messages import InferRequest, InferResponse, Relayed
from guard.metrics import Metrics, Outcome, Stage, UncheckableReason
from guard.runtime.loader import LoadedModel

__all__ = ["answer_unread"]

_UNCHECKED = Finding(Verdict.UNCHECKED, float("nan"), float("nan"), 0)


async def answer_unread(
    request: InferRequest,
    served: ServedModel,
    server: ModelServer,
    metrics: Metrics,
    *,
    max_rows: int,
    limit_s: float,
) -> InferResponse:
    """Answer a request that was not drawn (policy ``monitor``), and count its rows as unchecked.

    It is refused for nothing but what every request is refused for: another input, too many rows, fields that
    the guard does not know; so that no caller can tell by a refusal whether a request was drawn.

    Args:
        request: Its tensors unread.
        served: The model asked for.
        server: Answers for it.
        metrics: Where it is counted.
        max_rows: Most rows in one request.
        limit_s: Longest wait for the answer.

    Raises:
        RequestError: The caller must change the request.
        UnavailableError: The caller may retry.
        UpstreamStatusError: The model server refused it.
    """
    require_understood(request)
    began = time.monotonic()
    relayed: Relayed | None = None
    while relayed is None:  # once, unless another version takes over while the server cannot be asked
        with served.slot.lease() as model:
            rows = unread_rows(request, served.accepts(model.profile).name, max_rows)
            try:
                relayed = await _asked(server, request, model, began + limit_s)
            except BaseException as error:
                reason = shed_reason(error, request.timeout_s, time.monotonic() - began)
                if reason is not None:
                    metrics.shed(model.name, reason)
                raise
            if relayed is None:
                continue
            metrics.stage(model.name, Stage.TOTAL, time.monotonic() - began)
            metrics.uncheckable(model.name, UncheckableReason.NOT_SAMPLED, Outcome.ANSWERED, rows)
            metrics.verdicts(model.name, Verdict.UNCHECKED, rows)
    return add_findings(request, relayed, [_UNCHECKED] * rows, rows)


async def _asked(
    server: ModelServer, request: InferRequest, model: LoadedModel, ends: float
) -> Relayed | None:
    """Return the server's answer; None where another version took over from the one that was leased."""
    if not await server.until_ready(model, ends - time.monotonic()):
        return None
    with server.under_way():
        return await server.infer(request, model, ends - time.monotonic())
