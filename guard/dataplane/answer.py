"""What the caller gets back: the model's outputs unchanged, and the guard's findings beside them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from guard.arrays import Logits, held
from guard.artifact import OutputSpec
from guard.dataplane.classification import classification
from guard.detection.threshold import Tier, Verdict
from guard.messages import InferRequest, InferResponse, Parameter, Relayed, Tensor

__all__ = ["GUARD_OUTPUTS", "PENDING", "Finding", "add_findings", "build_answer", "worst"]

GUARD_OUTPUTS: Final = ("guard_verdict", "guard_score", "guard_p_value", "guard_passes")
"""Names of the response parameters, and of the per-row output tensors a caller may ask for."""

PENDING: Final = "pending"
"""``guard_verdict`` where the answer left before the check (policy ``monitor``)."""

_SEVERITY = (Verdict.ACCEPT, Verdict.UNCHECKED, Verdict.FLAG, Verdict.REJECT)


@dataclass(frozen=True)
class Finding:
    """What the guard found for one row.

    Attributes:
        score: The detector's, higher is more suspicious (STRIP's is minus the mean entropy, bits); what it
            is where ``passes`` is below N, the detector says; NaN if unchecked.
        p_value: Conformal p-value, exact where ``passes`` is N; else what the detector says: 1 for an input
            that the fused one accepted early, a lower bound for one that STRIP did; NaN if unchecked.
        passes: Blends spent.
        entropy_bits: Mean entropy of those; NaN if unchecked.
        tier: The highest boundary that it is beyond; None if none, or unchecked.
    """

    verdict: Verdict
    score: float
    p_value: float
    passes: int
    entropy_bits: float = math.nan
    tier: Tier | None = None


def worst(findings: list[Finding]) -> Finding:
    """Return the most severe finding, by verdict, then by p-value, then by score.

    Scores alone do not tell: what the fused detector accepts early has one on a scale of its own.
    """
    return max(findings, key=_severity)


def _severity(finding: Finding) -> tuple[int, float, float]:
    """Return what findings are ordered by, the most severe last; one without a score comes first."""
    verdict = _SEVERITY.index(finding.verdict)
    if math.isnan(finding.score):
        return verdict, -math.inf, -math.inf
    return verdict, -finding.p_value, finding.score


def build_answer(
    request: InferRequest, version: str, sink: OutputSpec, logits: Logits, findings: list[Finding] | None
) -> InferResponse:
    """Return the response to a request.

    The response parameters summarise: ``guard_verdict``, ``guard_score`` and ``guard_p_value``
    of the worst row, by verdict and then by score, ``guard_passes`` of all rows together.

    Args:
        request: The request answered.
        version: Version that answered.
        sink: The model's output.
        logits: The model's output rows.
        findings: One for each row; None where the check is still to come.
    """
    tensors = {sink.name: _own_output(request, sink, logits)}
    wanted = request.outputs or (sink.name,)
    if any(name in GUARD_OUTPUTS for name in wanted):
        tensors |= _finding_tensors(findings, len(logits))
    return InferResponse(
        model_name=request.model_name,
        model_version=version,
        id=request.id,
        outputs=tuple(tensors[name] for name in wanted),
        parameters=_summary(findings),
    )


def add_findings(
    request: InferRequest, relayed: Relayed, findings: list[Finding] | None, rows: int
) -> InferResponse:
    """Return a model server's answer with the findings beside it, as :func:`build_answer` adds them.

    Args:
        request: The request answered.
        relayed: What the server answered.
        findings: One for each row; None where the check is still to come.
        rows: Rows of the request.
    """
    wanted = [name for name in request.outputs if name in GUARD_OUTPUTS]
    tensors = _finding_tensors(findings, rows) if wanted else {}
    only_ours = bool(wanted) and len(wanted) == len(request.outputs)
    return InferResponse(
        model_name=request.model_name,
        model_version=request.model_version,
        id=request.id,
        outputs=tuple(tensors[name] for name in wanted),
        parameters=_summary(findings),
        relayed=replace(relayed, with_outputs=not only_ours),
    )


def _own_output(request: InferRequest, sink: OutputSpec, logits: Logits) -> Tensor:
    count = request.classifications.get(sink.name)
    if count is not None:
        return classification(sink, logits, count)
    return Tensor(sink.name, sink.datatype, held(logits, sink.datatype))


def _summary(findings: list[Finding] | None) -> dict[str, Parameter]:
    if findings is None:
        return {"guard_verdict": PENDING}
    top = worst(findings)
    checked: dict[str, Parameter] = {"guard_score": top.score, "guard_p_value": top.p_value}
    return {
        "guard_verdict": top.verdict.value,
        **(checked if top.verdict is not Verdict.UNCHECKED else {}),
        "guard_passes": sum(finding.passes for finding in findings),
    }


def _finding_tensors(findings: list[Finding] | None, rows: int) -> dict[str, Tensor]:
    if findings is None:
        nothing = np.full(rows, np.nan, np.float32)
        verdicts, scores, p_values, passes = [PENDING] * rows, nothing, nothing, np.zeros(rows, np.int32)
    else:
        verdicts = [finding.verdict.value for finding in findings]
        scores = np.array([finding.score for finding in findings], np.float32)
        p_values = np.array([finding.p_value for finding in findings], np.float32)
        passes = np.array([finding.passes for finding in findings], np.int32)
    return {
        "guard_verdict": Tensor("guard_verdict", "BYTES", np.array(verdicts, np.bytes_)),
        "guard_score": Tensor("guard_score", "FP32", scores),
        "guard_p_value": Tensor("guard_p_value", "FP32", p_values),
        "guard_passes": Tensor("guard_passes", "INT32", passes),
    }
