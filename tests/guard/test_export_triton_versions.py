"""What a Triton repository holds is left as it is: the next export is the next version, or is refused."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from guard.detection.threshold import Policy
from guard.errors import ArtifactError
from guard.export.triton import TritonOptions, export_triton
from tests.artifacts import write_tiny_artifact
from tests.guard.guarded_model import Guarded
from tests.reference_check import images_and_boundary
from tests.tiny_models import linear_classifier

CLEAN, SUSPICIOUS, _, BOUNDARY = images_and_boundary()


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    return write_tiny_artifact(tmp_path / "models", boundary_bits=BOUNDARY)


def export(artifact: Path, out: Path, **options: object) -> Path:
    return export_triton(TritonOptions(artifact, out, **options)).directory  # type: ignore[arg-type]


def load(directory: Path) -> Guarded:
    return Guarded(onnx.load(directory / "model.onnx"))


def test_the_next_export_is_the_next_version_and_touches_nothing_else(artifact: Path, tmp_path: Path) -> None:
    first = export(artifact, tmp_path)
    model = first.parent
    config = model / "config.pbtxt"
    config.write_text(config.read_text().replace("count: 1", "count: 3") + "# tuned by hand\n")
    before = {path: path.read_bytes() for path in model.rglob("*") if path.is_file()}

    second = export(artifact, tmp_path, policy=Policy.FLAG)

    assert second.name == "2"
    assert {path: path.read_bytes() for path in before} == before
    assert load(first)(SUSPICIOUS).verdicts == ["reject", "reject"]
    assert load(second)(SUSPICIOUS).verdicts == ["flag", "flag"]


@pytest.mark.parametrize(
    ("options", "field"), [({"backend": "python"}, "backend"), ({"max_batch_size": 4}, "max_batch_size")]
)
def test_a_version_that_the_configuration_does_not_fit_is_refused(
    artifact: Path, tmp_path: Path, options: dict[str, object], field: str
) -> None:
    model = export(artifact, tmp_path).parent

    with pytest.raises(ArtifactError, match=f"has another {field} than this export, and clients rely on it"):
        export(artifact, tmp_path, **options)

    assert not (model / "2").exists()


def test_another_models_tensors_are_refused_under_the_same_name(artifact: Path, tmp_path: Path) -> None:
    export(artifact, tmp_path)
    other = write_tiny_artifact(tmp_path / "others", model=linear_classifier(classes=5), classes=5)

    with pytest.raises(ArtifactError, match=r"another output than this export.*dims: \[?5.*dims: \[?10"):
        export(other, tmp_path)


def test_a_configuration_that_cannot_be_read_is_refused(artifact: Path, tmp_path: Path) -> None:
    model = export(artifact, tmp_path).parent
    (model / "config.pbtxt").write_text("name: ???")

    with pytest.raises(
        ArtifactError, match=r"config.pbtxt cannot be read \(.*mend it, or take another --name"
    ):
        export(artifact, tmp_path)


def test_the_guards_own_repository_is_not_written_into(artifact: Path) -> None:
    with pytest.raises(ArtifactError, match=r"holds version 1 and no config.pbtxt, so it was not exported"):
        export(artifact, artifact.parent.parent)

    assert [path.name for path in artifact.parent.iterdir()] == ["1"]
