"""The end of the guarded graph: from values to scores, p-values, verdicts and the answers let through."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np
from jaxtyping import Float64
from onnx import TensorProto

from guard.artifact import InputSpec, Profile
from guard.detection.base import Decision
from guard.detection.threshold import Policy, Verdict, verdict_of
from guard.export.idioms import add_all, add_nan
from guard.runtime.node_list import NodeList

__all__ = ["BLOCK_BOUNDARY", "BOUNDARY", "P_VALUE", "SCORE", "VERDICT", "Tiers", "add_judgement", "words_of"]

SCORE: Final = "guard_score"
VERDICT: Final = "guard_verdict"
P_VALUE: Final = "guard_p_value"
BOUNDARY: Final = "boundary"
BLOCK_BOUNDARY: Final = "block_boundary"

_FLOAT = TensorProto.FLOAT
_MOST = 1e30
_DECISIONS: Final = (Decision.CLEAN, Decision.DOUBTFUL, Decision.SUSPICIOUS, Decision.FAILED)


@dataclass(frozen=True, eq=False)
class Tiers:
    """What values are compared with; a value is minus a score.

    Attributes:
        boundary: A value strictly below it is doubtful at least.
        block_boundary: One strictly below it is suspicious; the same where there is one tier alone.
        clean_values: Values of the calibration images, ascending.
    """

    boundary: float
    block_boundary: float
    clean_values: Float64[np.ndarray, " n"]

    @classmethod
    def of(cls, profile: Profile) -> Tiers:
        """Return those of the detector that decides."""
        if profile.fused is None:
            first, second = profile.boundary, profile.block or profile.boundary
            clean = np.asarray(profile.calibration.clean_entropies_bits, np.float64)
            return cls(first.boundary_bits, second.boundary_bits, clean)
        fused = profile.fused
        block = fused.block or fused.boundary
        return cls(-fused.boundary.boundary, -block.boundary, -np.asarray(fused.clean_scores)[::-1])

    def decision(self, value: float) -> Decision:
        """Return what is made of a value."""
        if np.isnan(value):
            return Decision.FAILED
        if value < self.block_boundary:
            return Decision.SUSPICIOUS
        return Decision.DOUBTFUL if value < self.boundary else Decision.CLEAN


def words_of(policy: Policy) -> MappingProxyType[Decision, str]:
    """Return the verdict on each decision; under ``enforce`` what cannot be checked is refused."""
    words = {decision: verdict_of(decision, policy).value for decision in _DECISIONS}
    if policy is Policy.ENFORCE:
        words[Decision.FAILED] = Verdict.REJECT.value
    return MappingProxyType(words)


def add_judgement(
    g: NodeList, profile: Profile, policy: Policy, value: str, conditions: list[str], logits: str
) -> str:
    """Add score, p-value and verdict.

    Args:
        g: The graph's nodes.
        profile: The model's.
        policy: ``enforce`` or ``flag``.
        value: Name of the values, float64 (n, 1).
        conditions: Names of conditions, bool (n, 1), without all of which an image was not checked.
        logits: Name of the model's answers, float32 (n, k).

    Returns:
        Name of the answers that are let through, NaN for the others, float32 (n, k).
    """
    tiers = Tiers.of(profile)
    checked = _add_checked(g, profile.input, value, conditions)
    doubtful, suspicious = (
        g.node("Less", [value, g.constant(name, np.array(bound, np.float64))], f"{g.prefix}beyond_{name}")
        for name, bound in ((BOUNDARY, tiers.boundary), (BLOCK_BOUNDARY, tiers.block_boundary))
    )
    _add_numbers(g, tiers, value, checked)
    _add_verdict(g, policy, checked, doubtful, suspicious)
    if policy is not Policy.ENFORCE:
        return logits
    calm = g.node("Not", [suspicious], g.prefix + "not_suspicious")
    through = g.node("And", [checked, calm], g.prefix + "let_through")
    return g.node("Where", [through, logits, add_nan(g)], g.prefix + "answers")


def _add_checked(g: NodeList, source: InputSpec, value: str, conditions: list[str]) -> str:
    """Return (n, 1): every pixel is finite and in range, so is the value, and all conditions hold."""
    low, high = source.value_range.tolerated()
    below = g.constant("below_range", np.nextafter(low, np.float32(-np.inf)))
    above = g.constant("above_range", np.nextafter(high, np.float32(np.inf)))
    pixels = g.node("Cast", [source.name], g.prefix + "pixels", to=_FLOAT)
    bounds = [
        g.node("Greater", [pixels, below], g.prefix + "not_too_low"),
        g.node("Less", [pixels, above], g.prefix + "not_too_high"),
    ]
    inside = g.node("And", bounds, g.prefix + "inside")
    flat = g.node("Flatten", [inside], g.prefix + "inside_flat", axis=1)
    checked = add_all(g, flat, int(np.prod(source.shape)), g.prefix + "fits")
    limit = g.constant("highest_value", np.array(_MOST, np.float64))
    conditions = [*conditions, g.node("Less", [value, limit], g.prefix + "finite")]
    for place, condition in enumerate(conditions):
        checked = g.node("And", [checked, condition], f"{g.prefix}checked_{place}")
    return checked


def _add_numbers(g: NodeList, tiers: Tiers, value: str, checked: str) -> None:
    narrow = g.node("Cast", [g.node("Neg", [value], g.prefix + "score")], g.prefix + "score_fp32", to=_FLOAT)
    g.node("Where", [checked, narrow, add_nan(g)], SCORE)
    count = len(tiers.clean_values)
    clean = g.constant("clean_values", tiers.clean_values)
    above = g.node("Less", [value, clean], g.prefix + "cleaner")
    above = g.node("Cast", [above], g.prefix + "cleaner_fp32", to=_FLOAT)
    ones = g.constant("clean_images", np.ones((count, 1), np.float32))
    cleaner = g.node("MatMul", [above, ones], g.prefix + "cleaner_count")
    everyone = g.constant("n_clean_plus_1", np.array(count + 1, np.float32))
    rank = g.node("Sub", [everyone, cleaner], g.prefix + "rank")
    p = g.node("Div", [rank, everyone], g.prefix + "p_value")
    g.node("Where", [checked, p, add_nan(g)], P_VALUE)


def _add_verdict(g: NodeList, policy: Policy, checked: str, doubtful: str, suspicious: str) -> None:
    clean, between, beyond, failed = (
        g.constant(decision.value, np.array(code, np.int64)) for code, decision in enumerate(_DECISIONS)
    )
    code = g.node("Where", [doubtful, between, clean], g.prefix + "code_of_first")
    code = g.node("Where", [suspicious, beyond, code], g.prefix + "code_of_checked")
    code = g.node("Where", [checked, code, failed], g.prefix + "code")
    said = words_of(policy)
    words = g.constant("words", np.array([said[decision] for decision in _DECISIONS], np.object_))
    g.node("Gather", [words, code], VERDICT, axis=0)
