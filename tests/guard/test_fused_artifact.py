"""An artifact of the fused detector holds all that its statistics need, or is not read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from guard.artifact import read_artifact
from guard.errors import ProfileError
from tests.guard.artifact_edits import replace_file
from tests.guard.fused_subjects import write_fused_artifact
from tests.tiny_models import linear_classifier


def test_a_statistic_by_stratum_without_strata_is_refused(tmp_path: Path) -> None:
    model = linear_classifier((3, 6, 7), gain=0.3)
    artifact = write_fused_artifact(tmp_path, model, statistics=("departure",), strata=False)
    measures = read_artifact(artifact).measures
    assert measures is not None
    assert measures.strata is None
    profile = json.loads((artifact / "profile.json").read_text())
    profile["fused"]["statistics"] = ["stratified"]
    replace_file(artifact, "profile.json", json.dumps(profile).encode())

    with pytest.raises(ProfileError, match=r"fused\.npz holds no strata.*calibrate again"):
        read_artifact(artifact)
