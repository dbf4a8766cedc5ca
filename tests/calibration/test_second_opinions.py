"""Second opinions are tried at calibration, kept in the artifact, and refused where they do not fit it."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from pydantic import ValidationError

from calibration.calibrate import calibrate
from calibration.errors import OptionError
from calibration.heal.options import heal_options
from calibration.heal.subject import read_subject
from calibration.options import CalibrateOptions
from calibration.report import CalibrationReport
from calibration.second_opinions import judge_capabilities, opinion_rows
from calibration.split import Split
from calibration.subject import read_subject as read_calibrated
from guard.artifact import OpinionRecord, read_artifact
from guard.artifact.manifest import COPIES_NAME, OPINIONS_NAME, Manifest
from guard.detection.capabilities.opinion import OPINIONS, opinion_p_values
from guard.errors import ArtifactError, HashMismatchError, MissingFileError, ProfileError
from tests.calibration.calibration_subjects import options_for
from tests.calibration.capability_models import clean_images, linear_net, residual_net

IMAGES, FRR = 800, 0.05


def stored(images: np.ndarray) -> np.ndarray:
    return np.asarray((images.transpose(0, 2, 3, 1) * 255).round(), np.uint8)


def asked(folder: Path, model: onnx.ModelProto, **changes: object) -> CalibrateOptions:
    usual = {"frr": FRR, "capabilities": OPINIONS}
    options = options_for(folder, model, **{**usual, **changes})
    np.savez(options.data, images=stored(clean_images(IMAGES)))
    return options


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> CalibrationReport:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("calibration.calibrate.entropy_picture", lambda *_: b"a picture")
        return calibrate(asked(tmp_path_factory.mktemp("opinions"), residual_net(3)))


@pytest.fixture
def artifact(report: CalibrationReport, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return shutil.copytree(report.artifact, tmp_path / "tiny" / "1")


def replaced(artifact: Path, name: str, data: bytes | None) -> Path:
    """Write other content under the name, or remove it, and list what is there in the manifest."""
    (artifact / name).unlink() if data is None else (artifact / name).write_bytes(data)
    files = {path.name: path.read_bytes() for path in artifact.iterdir() if path.name != "manifest.json"}
    (artifact / "manifest.json").write_bytes(Manifest.of(files).to_json())
    return artifact


def tables(artifact: Path, **changes: np.ndarray | None) -> bytes:
    with np.load(artifact / OPINIONS_NAME) as kept:
        content = {**kept, **changes}
    buffer = io.BytesIO()
    np.savez(buffer, **{name: value for name, value in content.items() if value is not None})
    return buffer.getvalue()


def test_all_that_the_model_allows_are_on_and_told(report: CalibrationReport) -> None:
    records = report.findings.profile.opinions
    assert [(one.name, one.on, one.passes) for one in records] == [
        ("scale_up", True, 5),
        ("ibd_psc", True, 5),
        ("teco_lite", True, 12),
    ]
    text = "\n".join(report.lines())
    assert "second opinions   scale_up is on, 5 passes\n" in text
    assert [one["name"] for one in report.findings.to_record()["second_opinions"]] == list(OPINIONS)


def test_what_is_kept_scores_alike_and_p_values_of_clean_inputs_are_uniform(
    report: CalibrationReport,
) -> None:
    read = read_artifact(report.artifact)
    assert read.opinions is not None
    assert read.probe is not None
    assert read.opinions.copies is not None
    from calibration.capabilities.base import Bench, Copies

    bench = Bench(read.model, read.profile.input, read.profile.output, None, read.probe.images, "cpu", 1)
    copies = Copies(read.opinions.copies, "copies/outputs", 5)
    fresh = (stored(clean_images(400, seed=5)).astype(np.float32) / 255).transpose(0, 3, 1, 2).copy()
    with bench.asked(copies) as model:
        for one, record in zip(read.opinions.each, read.profile.opinions, strict=True):
            assert one.name == record.name
            assert len(one.clean) == record.n_clean == 200
            classes = model.model(read.probe.images).argmax(axis=1)
            probed = one.opinion.scores(read.probe.images, classes, model)
            np.testing.assert_allclose(probed, one.probe, rtol=1e-4, atol=1e-4 * one.clean.std())
            scores = one.opinion.scores(fresh, model.model(fresh).argmax(axis=1), model)
            p_values = opinion_p_values(scores, one.clean)
            for share in (0.1, 0.3):
                assert np.mean(p_values <= share) == pytest.approx(share, abs=0.1), one.name


def test_a_p_value_counts_clean_scores_that_are_as_high() -> None:
    found = opinion_p_values(np.array([0.0, 2.0, 2.5, 9.0, np.nan]), np.array([1.0, 2.0, 2.0, 3.0]))
    np.testing.assert_array_equal(found, [1.0, 0.8, 0.4, 0.2, np.nan])


def test_those_that_the_model_does_not_allow_are_off_and_told_why(tmp_path: Path) -> None:
    options = asked(tmp_path, linear_net(), capabilities=("ibd_psc",))
    found = judged(options)
    (record,) = found.records
    assert (record.on, record.n_clean) == (False, 0)
    assert list(found.lines()) == [f"ibd_psc is off: {record.why_off}"]
    assert record.why_off.startswith("the model has 0 norm layers")
    assert found.opinions is not None
    assert found.opinions.each == ()


def test_too_few_images_for_the_rate_are_told(tmp_path: Path) -> None:
    found = judged(asked(tmp_path, linear_net(), capabilities=("scale_up",), frr=0.001, threshold="normal"))
    why = "it takes 999 clean images that it is not fitted on, and there are 592"
    assert [one.why_off for one in found.records] == [why]


def judged(options: CalibrateOptions) -> object:
    subject, nothing = read_calibrated(options), np.zeros(0, np.int64)
    split = Split(np.arange(8), nothing, np.arange(8, IMAGES), 0, 0)
    probe = subject.prepare(subject.images.images[:1])
    return judge_capabilities(subject, split, options, probe, np.random.default_rng(0))


def test_what_a_canary_shows_that_a_capability_is_blind_turns_it_off(tmp_path: Path) -> None:
    class Blind:
        model, triggered = residual_net(3), clean_images(40, seed=6)

    options = asked(tmp_path, residual_net(3), capabilities=("scale_up",))
    subject = read_calibrated(options)
    split = Split(np.arange(8), np.arange(8, 300), np.arange(300, IMAGES), 0, 0)
    probe, generator = subject.prepare(subject.images.images[:1]), np.random.default_rng(0)
    (record,) = judge_capabilities(subject, split, options, probe, generator, [Blind()]).records
    assert "blind to the planted canaries" in record.why_off
    assert record.canary_aurocs[0] == pytest.approx(0.5, abs=0.15)


@pytest.mark.parametrize(("fit", "frr", "sizes"), [(300, 0.01, (200, 200)), (0, 0.001, (200, 999))])
def test_rows_to_compare_with_are_others_than_those_to_fit_on(
    fit: int, frr: float, sizes: tuple[int, int]
) -> None:
    rows = np.arange(1700)
    split = Split(rows[:8], rows[8 : 8 + fit], rows[8 + fit :], 0, 0)
    fitted, clean = opinion_rows(split, np.random.default_rng(0), frr)
    assert (len(fitted), len(clean)) == sizes
    assert len({*fitted, *clean}) == sum(sizes)
    assert set(clean) <= set(split.calibration)
    assert set(fitted) <= set(split.fit if fit else split.calibration)


@pytest.mark.parametrize("names", [("scaleup",), ("scale_up", "scale_up"), ("auto", "off")])
def test_names_that_are_none_are_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(OptionError, match="auto, off, or some of scale_up, ibd_psc, teco_lite, each once"):
        options_for(tmp_path, linear_net(), capabilities=names)


def test_a_healed_version_has_the_second_opinions_that_the_last_one_had(report: CalibrationReport) -> None:
    pytest.importorskip("torch")
    parent = report.artifact.parent
    options = heal_options({"model": str(parent), "data": "d.npz", "out": str(parent.parent / "out")})
    assert read_subject(options).check.capabilities == OPINIONS


def test_damage_is_found_by_the_hashes(artifact: Path) -> None:
    path = artifact / COPIES_NAME
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(HashMismatchError, match=COPIES_NAME):
        read_artifact(artifact)


@pytest.mark.parametrize("name", [OPINIONS_NAME, COPIES_NAME])
def test_a_file_that_is_not_there_is_missed(artifact: Path, name: str) -> None:
    with pytest.raises(
        MissingFileError, match=rf"{name} is missing, which scale_up, ibd_psc, teco_lite need"
    ):
        read_artifact(replaced(artifact, name, None))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"ibd_psc_spread": None}, "holds the arrays"),
        ({"pickled": np.zeros(1)}, "holds the arrays"),
        ({"teco_lite_means": np.zeros((5, 4))}, r"teco_lite_means of shape \(4, 4\)"),
        ({"scale_up_clean": np.zeros(7)}, r"scale_up_clean of shape \(200,\)"),
        ({"scale_up_clean": np.zeros(200, np.float32)}, "and float64"),
        ({"scale_up_clean": -np.arange(200.0)}, "is not ascending"),
        ({"ibd_psc_means": np.full((4, 1), np.nan)}, "NaN or infinite"),
        ({"ibd_psc_spread": np.zeros(1)}, "ibd_psc_spread is not above 0"),
    ],
)
def test_tables_that_do_not_fit_are_refused(
    artifact: Path, changes: dict[str, np.ndarray | None], says: str
) -> None:
    with pytest.raises(ProfileError, match=says):
        read_artifact(replaced(artifact, OPINIONS_NAME, tables(artifact, **changes)))


def test_pickles_and_what_is_no_graph_of_copies_are_refused(artifact: Path) -> None:
    pickled = tables(artifact, scale_up_clean=np.array([{}], object))
    with pytest.raises(ArtifactError, match="pickled"):
        read_artifact(replaced(artifact, OPINIONS_NAME, pickled))


def test_another_graph_in_the_place_of_the_copies_is_refused(artifact: Path) -> None:
    model = (artifact / "model.onnx").read_bytes()
    with pytest.raises(ProfileError, match="expected 'copies/outputs' with 5 times 4 values;"):
        read_artifact(replaced(artifact, COPIES_NAME, model))


def test_a_record_is_on_with_scores_to_compare_with_or_off_without() -> None:
    with pytest.raises(ValidationError, match="n_clean must be above 0"):
        OpinionRecord(name="scale_up", passes=5)
    with pytest.raises(ValidationError, match="n_clean must be above 0"):
        OpinionRecord(name="scale_up", passes=5, n_clean=9, why_off="no")
