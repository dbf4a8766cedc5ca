"""Scores in another precision than at calibration: served as far as the boundary tolerates, no further."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.calibrate import calibrate
from calibration.options import CalibrateOptions
from guard.artifact import Artifact, read_artifact
from guard.artifact.precision import Precision
from guard.artifact.writer import write_artifact
from guard.assembly import runtime_options_of
from guard.errors import ProbeError, SettingsError
from guard.runtime.loader import LoadedModel, RuntimeOptions, load_model
from guard.runtime.score_shift import MARGIN, SHARE, check_shift, full_scores, tolerated_shift
from guard.settings import Settings
from tests.artifacts import make_profile, random_images, write_tiny_artifact
from tests.serving import infer_request, serving
from tests.tiny_models import linear_classifier

LIKE_AN_ARTIFACT = {"device": "cpu", "threads": 1, "max_batch_pairs": 16}


@pytest.fixture
def load() -> Iterator[Callable[..., LoadedModel]]:
    opened: list[LoadedModel] = []

    def load_one(directory: Path, **options: object) -> LoadedModel:
        opened.append(load_model("tiny", directory, RuntimeOptions(**LIKE_AN_ARTIFACT | options)))
        return opened[-1]

    yield load_one
    for model in opened:
        model.close()


def with_scores(root: Path, boundary: float, clean: tuple[float, ...]) -> Path:
    """Write a probed artifact whose calibration images had these mean entropies."""
    first = read_artifact(write_tiny_artifact(root / "first", probed=True))
    profile = first.profile.model_dump()
    profile["boundary"] |= {"boundary_bits": boundary, "n_scores": len(clean)}
    profile["calibration"] |= {"clean_entropies_bits": clean}
    return write_artifact(
        root / "tiny",
        model=first.model.SerializeToString(),
        overlays=first.overlays,
        profile=type(first.profile).model_validate(profile),
        probe=first.probe,
    )


@given(
    values=st.lists(st.floats(0.0, 5.0), min_size=2, max_size=300).map(sorted),
    place=st.floats(0.0, 1.0),
    frr=st.floats(0.001, 0.3),
)
def test_within_the_tolerance_no_more_change_sides_than_promised(
    values: list[float], place: float, frr: float
) -> None:
    clean = np.array(values)
    boundary = float(clean[int(place * (len(clean) - 1))])
    tolerated = tolerated_shift(clean, boundary, frr)
    change = ((clean >= boundary) & (clean < boundary + tolerated - 1e-9)).sum()
    assert change <= max(1, int(SHARE * frr * len(clean)))


def test_more_images_near_the_boundary_tolerate_less() -> None:
    sparse, dense = np.linspace(0.0, 3.0, 400), np.linspace(0.0, 0.3, 400)
    assert tolerated_shift(dense, 0.1, 0.05) < tolerated_shift(sparse, 0.1, 0.05)


def test_the_precision_of_the_calibration_is_served_whatever_the_boundary(
    tmp_path: Path, load: Callable[..., LoadedModel]
) -> None:
    directory = with_scores(tmp_path, 0.5, (0.5, 0.5, 0.5, 0.5))  # tolerates nothing
    model = load(directory, precision="exact")
    assert model.classifier.precision == "exact"
    assert model.score_shift_bits is not None
    assert model.score_shift_bits < 1e-5


def test_another_precision_within_what_is_tolerated_is_served_and_said(
    tmp_path: Path, load: Callable[..., LoadedModel], caplog: pytest.LogCaptureFixture
) -> None:
    directory = with_scores(tmp_path, 0.5, (0.5, 1.0, 1.5, 2.0))
    with caplog.at_level(logging.WARNING):
        model = load(directory, precision="fp16")
    assert model.score_shift_bits is not None
    assert 1e-6 < model.score_shift_bits < 0.25
    [said] = [record for record in caplog.records if "another precision" in record.message]
    assert (said.precision, said.calibrated) == ("fp16", "exact")
    assert said.score_shift_bits == model.score_shift_bits


def test_another_precision_beyond_what_is_tolerated_is_refused_naming_both(
    tmp_path: Path, load: Callable[..., LoadedModel]
) -> None:
    directory = with_scores(tmp_path, 0.5, (0.5, 0.5 + 1e-7, 1.5, 2.0))
    with pytest.raises(ProbeError) as refused:
        load(directory, precision="fp16")
    message = str(refused.value)
    assert "precision 'fp16' moves the scores of the stored images by up to 0.00" in message
    assert f"from those in precision 'exact', expected at most {1e-7 / MARGIN:.4g}" in message
    assert "calibrate again with --precision fp16" in message


def test_without_stored_images_another_precision_is_refused(
    tmp_path: Path, load: Callable[..., LoadedModel]
) -> None:
    directory = write_tiny_artifact(tmp_path)
    assert load(directory).score_shift_bits is None
    with pytest.raises(ProbeError, match=r"holds no scores of stored images that precision 'fp16' could be"):
        load(directory, precision="fp16")


def calibrated(root: Path, precision: Precision, detector: str) -> Artifact:
    """Calibrate a tiny model on images it is unsure about."""
    model = linear_classifier(gain=0.2)
    (root / "model.onnx").write_bytes(model.SerializeToString())
    images = (random_images(make_profile(model), 900) * 255).astype(np.uint8).transpose(0, 2, 3, 1)
    np.savez(root / "clean.npz", images=images)
    options = CalibrateOptions(
        model=root / "model.onnx",
        data=root / "clean.npz",
        out=root / "repository" / "tiny",
        overlays=8,
        detector=detector,
        capabilities=(),
        frr=0.05,
        seed=3,
        precision=precision,
        device="cpu",
        threads=1,
        quiet=True,
    )
    return read_artifact(calibrate(options).artifact)


@pytest.mark.parametrize("detector", ["strip", "fused"])
def test_a_boundary_made_in_float16_is_served_in_float16(
    tmp_path: Path, load: Callable[..., LoadedModel], detector: str
) -> None:
    artifact = calibrated(tmp_path, "fp16", detector)
    assert artifact.profile.check.precision == "fp16"
    model = load(artifact.directory)
    assert model.classifier.precision == "fp16"
    assert model.score_shift_bits is not None
    assert model.score_shift_bits < 1e-5


@pytest.mark.parametrize("detector", ["strip", "fused"])
@pytest.mark.parametrize(("made", "served"), [("exact", "fp16"), ("fp16", "exact")])
def test_what_is_compared_is_the_score_that_decides(
    tmp_path: Path, load: Callable[..., LoadedModel], made: Precision, served: Precision, detector: str
) -> None:
    artifact = calibrated(tmp_path, made, detector)
    model, probe = load(artifact.directory), artifact.probe
    assert probe is not None
    scores = full_scores(model.classifier, model.detector, probe.images, max_pairs=5)
    fused = artifact.profile.fused
    stored = -probe.mean_entropy_bits if fused is None else np.array(fused.probe_scores)
    np.testing.assert_allclose(scores, stored, atol=1e-4)

    profile = artifact.profile
    if fused is not None:  # a boundary with another image's score next to it, on the side of those accepted
        near = [fused.boundary.boundary - 1e-9] * len(fused.clean_scores)
        changed = fused.model_copy(update={"clean_scores": tuple(near)})
        profile = profile.model_copy(update={"fused": changed})
    else:
        near = [profile.boundary.boundary_bits + 1e-9] * profile.boundary.n_scores
        record = profile.calibration.model_copy(update={"clean_entropies_bits": tuple(near)})
        profile = profile.model_copy(update={"calibration": record})
    tight = write_artifact(
        tmp_path / "tight",
        model=artifact.model.SerializeToString(),
        overlays=artifact.overlays,
        profile=profile,
        probe=probe,
        measures=artifact.measures,
    )
    load(tight)
    with pytest.raises(ProbeError, match=rf"precision '{served}' moves the scores"):
        load(tight, precision=served)


def test_a_score_of_the_layers_is_served_in_the_precision_of_its_calibration_alone(
    tmp_path: Path, load: Callable[..., LoadedModel]
) -> None:
    artifact = calibrated(tmp_path, "exact", "fused")
    assert artifact.profile.fused is not None
    layered = artifact.profile.fused.model_copy(update={"statistics": ("departure", "layers")})
    changed = replace(artifact, profile=artifact.profile.model_copy(update={"fused": layered}))
    model = load(artifact.directory)
    check_shift(model.classifier, model.detector, changed, "exact", max_pairs=8)
    with pytest.raises(ProbeError, match=r"looks at the model's layers, whose distances in precision 'fp16'"):
        check_shift(model.classifier, model.detector, changed, "fp16", max_pairs=8)


@pytest.mark.parametrize("max_pairs", [1, 7, 64])
def test_device_calls_of_fixed_shapes_serve_the_same_verdicts(
    tmp_path: Path, load: Callable[..., LoadedModel], max_pairs: int
) -> None:
    directory = write_tiny_artifact(tmp_path, probed=True)
    plain = load(directory, max_batch_pairs=max_pairs)
    fixed = load(directory, max_batch_pairs=max_pairs, cuda_graphs=True)
    images = random_images(plain.profile, 9)
    one, other = (
        full_scores(model.classifier, model.detector, images, max_pairs=max_pairs) for model in (plain, fixed)
    )
    np.testing.assert_allclose(other, one, atol=1e-6)


def test_a_models_own_settings_win_over_the_servers(tmp_path: Path) -> None:
    settings = Settings(
        repository=tmp_path,
        device="cuda",
        precision="tf32",
        cuda_graphs=True,
        models={"half": {"precision": "fp16"}, "plain": {"precision": "exact", "cuda_graphs": False}},
    )
    options = {name: runtime_options_of(settings, name) for name in ("other", "half", "plain")}
    assert [(o.precision, o.cuda_graphs) for o in options.values()] == [
        ("tf32", True),
        ("fp16", True),
        ("exact", False),
    ]
    assert runtime_options_of(Settings(repository=tmp_path), "any").precision is None


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"cuda_graphs": True}, "cuda_graphs"),
        ({"models": {"cats": {"cuda_graphs": True}}}, "models.cats.cuda_graphs"),
    ],
)
def test_cuda_graphs_without_cuda_are_refused(
    tmp_path: Path, settings: dict[str, object], where: str
) -> None:
    with pytest.raises(SettingsError, match=rf"expected device = 'cuda' beside {where}, got 'auto'"):
        runtime_options_of(Settings(repository=tmp_path, **settings), "cats")


async def test_a_guard_says_how_far_scores_are_shifted_and_serves_what_is_set(tmp_path: Path) -> None:
    directory = with_scores(tmp_path / "made", 0.5, (0.5, 1.0, 1.5, 2.0))
    repository = tmp_path / "repository"
    shutil.copytree(directory, repository / "tiny" / "1")
    shutil.copytree(directory, repository / "half" / "1")
    async with serving(repository, policy="flag", models={"half": {"precision": "fp16"}}) as client:
        shifts = client.counted("guard_score_shift_bits", "model")
        image = random_images(make_profile(linear_classifier()), 1)
        exact, half = [
            np.frombuffer(
                (await client.infer(infer_request(image, model=name))).raw_output_contents[0], "<f4"
            )
            for name in ("tiny", "half")
        ]
    assert 1e-6 < shifts["half",] < 0.25
    assert shifts.get(("tiny",), 0.0) < 1e-5
    assert 0 < np.abs(half - exact).max() < 2e-2 * np.abs(exact).max()
