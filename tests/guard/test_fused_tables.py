"""What a damaged fused artifact holds is refused when it is read; what is left of it lets nothing through."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest

from guard.artifact import FusedRecord, read_artifact
from guard.artifact.fused_record import read_measures
from guard.detection.base import Decision, Evidence
from guard.detection.fused import Fused
from guard.detection.fusion import Fusion
from guard.detection.measurements import Measures
from guard.detection.plan import CheckPlan
from guard.detection.responses import Responses
from guard.detection.stratified import Strata
from guard.errors import ProfileError
from tests.guard.artifact_edits import replace_file
from tests.guard.fused_subjects import fitted, write_fused_artifact
from tests.tiny_models import linear_classifier

CLASSES, OVERLAYS = 3, 4
TABLES = {
    "expected": np.full((CLASSES, OVERLAYS, CLASSES), 1 / CLASSES, np.float32),
    "overlay_classes": np.array([0, 1, 2, 0]),
    "strata": np.array([0, 1, 2]),
    "strata_means": np.zeros((CLASSES, CLASSES)),
    "strata_spreads": np.ones(CLASSES),
}


def read(**changes: np.ndarray) -> Measures:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **(TABLES | changes))
    return read_measures(buffer.getvalue(), CLASSES, OVERLAYS, (), "fused.npz")


@pytest.mark.parametrize(
    "strata",
    [
        np.arange(4),
        np.zeros(0, np.int64),
        np.zeros(3, [("a", "i4")]),
        np.array(["a", "b", "c"]),
        np.arange(1, 4),
    ],
    ids=["longer", "empty", "records", "text", "others"],
)
def test_strata_that_are_not_those_of_the_overlays_are_refused(strata: np.ndarray) -> None:
    assert read().strata is not None
    with pytest.raises(ProfileError, match=r"fused\.npz.*calibrate again"):
        read(strata=strata)


def test_a_score_that_is_no_number_is_below_no_boundary() -> None:
    """Spreads too small to divide by make +inf and -inf of one stratum's blends, and NaN of their mean."""
    strata = Strata(np.array([0, 0, 1, 1]), np.array([0, 1]), np.full((2, 2), 0.5), np.full(2, 5e-324))
    measures = Measures(Responses(np.full((2, 4, 2), 0.5, np.float32)), strata)
    detector = Fused(CheckPlan((4,)), measures, ("stratified",), Fusion(np.zeros(1), np.ones(1)), (), 1.0)
    logits = np.array([[0, 0], [0, 0], [2, 0], [0, 2]], np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        measured = detector.measure(np.zeros(4, np.int64), np.arange(4), logits, np.ones(4, np.float32))
        evidence = detector.update(Evidence(), measured)
        assert np.isnan(detector.score(evidence))
        assert detector.decide(evidence) is Decision.FAILED


def record(**changes: object) -> dict[str, object]:
    """Return the record of a fused detector with changes, as the profile holds it."""
    found = fitted(linear_classifier((3, 6, 7), gain=0.3))[0].fused
    assert found is not None
    return found.model_dump() | changes


def early(passes: int, known: int) -> dict[str, object]:
    return {"passes": passes, "centres": [0.0] * known, "scales": [1.0] * known, "below": 0.5}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"early": [early(2, 2), early(2, 2)]}, "each round once"),
        (
            {
                "statistics": ["stratified"],
                "centres": [0.0],
                "scales": [1.0],
                "views": [],
                "early": [early(2, 0)],
            },
            "none where no statistic is known early",
        ),
    ],
    ids=["a round twice", "nothing is known early"],
)
def test_rounds_that_would_accept_by_nothing_or_twice_are_refused(
    changes: dict[str, object], why: str
) -> None:
    FusedRecord.model_validate(record(early=[early(2, 2)]))
    with pytest.raises(ValueError, match=why):
        FusedRecord.model_validate(record(**changes))


def test_a_record_without_views_scores_by_the_highest_statistic() -> None:
    """As artifacts do that were made before there were views."""
    older = {"centres": [0.5, 1.0, 0.0], "scales": [0.5, 2.0, 1.0]}
    stored = {name: value for name, value in record(**older).items() if name != "views"}
    fusion = FusedRecord.model_validate(stored).fusion
    assert fusion.scores(np.array([[1.0, 2.0, -1.0]])).tolist() == [1.0]


@pytest.mark.parametrize(
    ("view", "why"),
    [
        ({"weights": [[1.0, 1.0]]}, "as many"),
        ({"weights": [[1.0, 1.0, -0.5]]}, "greater than or equal to 0"),
        ({"weights": []}, "at least 1"),
        ({"scale": 0.0}, "greater than 0"),
        ({"centre": float("nan")}, "finite"),
    ],
    ids=["narrower", "negative", "no rows", "no scale", "no number"],
)
def test_views_that_cannot_be_are_refused(view: dict[str, object], why: str) -> None:
    whole = {"weights": [[1.0, 1.0, 0.5]], "centre": 0.0, "scale": 1.0}
    FusedRecord.model_validate(record(views=[whole]))
    with pytest.raises(ValueError, match=why):
        FusedRecord.model_validate(record(views=[whole | view]))


@pytest.mark.parametrize(
    "changes",
    [
        {
            "scales": [1e-300, 1.0, 1.0],
            "views": [{"weights": [[1e300, 0.0, 0.0]], "centre": 0.0, "scale": 1.0}],
        },
        {"scales": [1e-200, 1.0, 1.0], "centres": [1e200, 0.0, 0.0], "views": []},
        {"early": [early(2, 2) | {"scales": [5e-324, 1.0]}]},
    ],
    ids=["weights", "centres", "a round"],
)
def test_scales_that_leave_no_number_of_a_statistic_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must be finite"):
        FusedRecord.model_validate(record(**changes))


@pytest.mark.parametrize("changed", [{"n_scores": 7}, {"rank": 10_000}])
def test_a_boundary_of_other_scores_than_the_artifact_holds_is_refused(
    tmp_path: Path, changed: dict[str, int]
) -> None:
    artifact = write_fused_artifact(tmp_path, linear_classifier((3, 6, 7), gain=0.3))
    read_artifact(artifact)
    profile = json.loads((artifact / "profile.json").read_text())
    profile["fused"]["boundary"] |= changed
    replace_file(artifact, "profile.json", json.dumps(profile).encode())
    with pytest.raises(ProfileError, match=r"must fit fused\.clean_scores"):
        read_artifact(artifact)


@pytest.mark.parametrize("changed", [{"n_scores": 7}, {"rank": 10_000}])
def test_a_block_boundary_of_strip_s_is_held_to_the_same(tmp_path: Path, changed: dict[str, int]) -> None:
    artifact = write_fused_artifact(tmp_path, linear_classifier((3, 6, 7), gain=0.3))
    profile = json.loads((artifact / "profile.json").read_text())
    profile["block"] = dict(profile["boundary"])
    replace_file(artifact, "profile.json", json.dumps(profile).encode())
    read_artifact(artifact)
    profile["block"] |= changed
    replace_file(artifact, "profile.json", json.dumps(profile).encode())
    with pytest.raises(ProfileError, match=r"block\.rank and n_scores must fit"):
        read_artifact(artifact)
