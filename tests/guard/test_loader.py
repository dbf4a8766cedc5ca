"""Loading: from a directory to a model that serves, or to one clear error and nothing left behind."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from guard.artifact import MANIFEST_NAME, Profile, write_artifact
from guard.artifact.manifest import sha256_of
from guard.detection.base import Decision
from guard.detection.entropy import entropy_of_logits
from guard.detection.strip import mean_entropies
from guard.detection.superimpose import BLEND_RULES, superimpose
from guard.errors import MissingFileError, ProfileError, SettingsError, UnfitModelError
from guard.runtime.loader import LoadedModel, RuntimeOptions, load_model
from tests import tiny_models
from tests.artifacts import make_profile, random_images, write_tiny_artifact
from tests.serving import PATIENCE_S

ON_CPU = RuntimeOptions(device="cpu", threads=1)


@pytest.fixture(autouse=True)
def no_device_thread_is_left() -> Iterator[None]:
    yield
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("device-")] == []


@pytest.fixture
def open_model() -> Iterator[Callable[..., LoadedModel]]:
    opened: list[LoadedModel] = []

    def open_one(directory: Path, options: RuntimeOptions = ON_CPU, **hooks: object) -> LoadedModel:
        opened.append(load_model("tiny", directory, options, **hooks))
        return opened[-1]

    yield open_one
    for model in opened:
        model.close()


def write_with(root: Path, model: onnx.ModelProto, **changes: object) -> Path:
    """Write an artifact whose profile says something else than its model."""
    honest = make_profile(model)
    profile = Profile.model_validate(honest.model_dump() | changes)
    overlays = random_images(profile, profile.check.n_overlays)
    return write_artifact(root / "tiny", model=model.SerializeToString(), overlays=overlays, profile=profile)


def changed(part: object, **changes: object) -> dict[str, object]:
    return part.model_dump() | changes  # type: ignore[attr-defined]


def test_a_loaded_model_knows_its_name_version_digest_and_clean_scores(
    tmp_path: Path, open_model: Callable[..., LoadedModel]
) -> None:
    write_tiny_artifact(tmp_path)
    directory = write_tiny_artifact(tmp_path)

    model = open_model(directory)

    assert (model.name, model.version) == ("tiny", "2")
    assert model.digest == sha256_of((directory / MANIFEST_NAME).read_bytes())
    assert model.clean_values.tolist() == [0.5, 1.0, 1.5, 2.0]
    assert model.clean_values.dtype == np.float64
    assert model.classifier.device == "cpu"
    assert model.scheduler.max_queue_rows == 1024


@pytest.mark.parametrize("blend", list(BLEND_RULES))
async def test_a_loaded_model_answers_and_checks_as_the_numpy_reference_does(
    tmp_path: Path, open_model: Callable[..., LoadedModel], blend: str
) -> None:
    directory = write_tiny_artifact(tmp_path, blend=blend, boundary_bits=3.3)
    model = open_model(directory)
    images = random_images(model.profile, 5, seed=7)

    submission = model.scheduler.submit(images, np.ones(5, np.bool_))
    logits, rows = await asyncio.wait_for(asyncio.gather(submission.prediction, submission.rows), PATIENCE_S)

    weight, bias = tiny_models.linear_weights()
    np.testing.assert_allclose(logits, images.reshape(5, -1) @ weight + bias, atol=1e-3)
    overlays = np.load(directory / "overlays.npy")
    blends = superimpose(images, overlays, BLEND_RULES[blend], model.profile.input.value_range)
    expected = mean_entropies(entropy_of_logits(blends.reshape(5, 8, -1) @ weight + bias))
    np.testing.assert_allclose([row.evidence.entropy_sum / 8 for row in rows], expected, atol=1e-3)
    assert [row.decision for row in rows] == [Decision.SUSPICIOUS] * 5


async def test_scores_are_the_same_alone_and_among_others(
    tmp_path: Path, open_model: Callable[..., LoadedModel]
) -> None:
    directory = write_tiny_artifact(tmp_path, boundary_bits=3.3)
    crowded = open_model(directory, RuntimeOptions(device="cpu", threads=1, max_batch_pairs=64))
    lonely = open_model(directory, RuntimeOptions(device="cpu", threads=1, max_batch_pairs=1))
    images = random_images(crowded.profile, 12, seed=3)

    scores = []
    for model in (crowded, lonely):
        submissions = [model.scheduler.submit(image[None], np.ones(1, np.bool_)) for image in images]
        ends = await asyncio.wait_for(asyncio.gather(*(one.rows for one in submissions)), PATIENCE_S)
        scores.append([rows[0].evidence.entropy_sum / 8 for rows in ends])

    np.testing.assert_allclose(scores[0], scores[1], atol=1e-5)
    assert np.ptp(scores[0]) > 0.1


async def test_each_device_call_is_told_and_warming_up_is_none(
    tmp_path: Path, open_model: Callable[..., LoadedModel]
) -> None:
    told: list[int] = []
    model = open_model(
        write_tiny_artifact(tmp_path, boundary_bits=0.0), on_batch=lambda pairs, _: told.append(pairs)
    )
    assert told == []

    submission = model.scheduler.submit(random_images(model.profile, 2), np.ones(2, np.bool_))
    await asyncio.wait_for(submission.rows, PATIENCE_S)

    assert told == [6]


async def test_closing_ends_the_thread_and_frees_the_device(tmp_path: Path) -> None:
    model = load_model("tiny", write_tiny_artifact(tmp_path), ON_CPU)
    submission = model.scheduler.submit(random_images(model.profile, 3), np.ones(3, np.bool_))

    await asyncio.to_thread(model.close)

    assert len(await submission.rows) == 3
    with pytest.raises(RuntimeError, match="the classifier is closed"):
        model.classifier.logits(random_images(model.profile, 1))


@pytest.mark.parametrize(
    "options",
    [
        {"layout": "NHWC"},
        {"datatype": "UINT8"},
        {"datatype": "FP16"},
        {"batch": 4},
        {"softmax": True},
    ],
    ids=str,
)
def test_every_kind_of_model_loads(
    tmp_path: Path, open_model: Callable[..., LoadedModel], options: dict[str, object]
) -> None:
    kind = "probabilities" if "softmax" in options else "logits"

    model = open_model(
        write_tiny_artifact(tmp_path, model=tiny_models.linear_classifier(**options), kind=kind)
    )

    images = random_images(model.profile, 3)
    assert model.classifier.logits(images).shape == (3, 10)


def test_a_model_that_does_not_say_its_classes_is_taken_at_its_profiles_word(
    tmp_path: Path, open_model: Callable[..., LoadedModel]
) -> None:
    directory = write_tiny_artifact(tmp_path, model=tiny_models.untold_classes())

    assert open_model(directory).profile.output.classes == 10


def test_a_wrong_word_on_the_number_of_classes_is_found_when_warming_up(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    directory = write_tiny_artifact(tmp_path, model=tiny_models.untold_classes(), classes=7)

    with pytest.raises(UnfitModelError) as unfit:
        load_model("tiny", directory, ON_CPU)

    assert str(unfit.value).startswith("the model fails on a batch of 1 images: ")
    assert capfd.readouterr() == ("", "")  # ONNX Runtime keeps its own log to itself


@pytest.mark.parametrize(
    ("part", "changes", "expected"),
    [
        ("input", {"name": "pictures"}, "input_name='pictures'"),
        ("input", {"datatype": "FP16"}, "datatype='FP16'"),
        ("output", {"name": "scores"}, "output_name='scores'"),
        ("output", {"classes": 7}, "classes=7"),
        ("output", {"datatype": "FP16"}, "output_datatype='FP16'"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_profile_that_says_something_else_than_the_graph_is_refused(
    tmp_path: Path, part: str, changes: dict[str, object], expected: str
) -> None:
    model = tiny_models.linear_classifier()
    directory = write_with(tmp_path, model, **{part: changed(getattr(make_profile(model), part), **changes)})

    with pytest.raises(ProfileError) as refused:
        load_model("tiny", directory, ON_CPU)

    graph, stated = str(refused.value).split(", but its profile says ")
    assert graph.startswith(f"{directory}/model.onnx is Signature(")
    assert (expected in graph, expected in stated) == (False, True)
    assert stated.endswith("; calibrate this model again")


def test_a_model_whose_output_is_named_like_a_verdict_is_refused(tmp_path: Path) -> None:
    model = tiny_models.linear_classifier()
    model.graph.output[0].name = model.graph.node[-1].output[0] = "guard_verdict"

    with pytest.raises(
        ProfileError, match="names its output 'guard_verdict'; names that begin with 'guard_'"
    ):
        load_model("tiny", write_with(tmp_path, model), ON_CPU)


def test_a_profile_with_another_layout_is_refused(tmp_path: Path) -> None:
    model = tiny_models.linear_classifier()
    source = changed(make_profile(model).input, layout="NHWC", shape=(8, 8, 3))

    with pytest.raises(UnfitModelError, match=r"the model takes images of shape \(3, 8, 8\)"):
        load_model("tiny", write_with(tmp_path, model, input=source), ON_CPU)


def test_a_profile_with_another_batch_size_is_refused(tmp_path: Path) -> None:
    directory = write_with(tmp_path, tiny_models.linear_classifier(batch=4), fixed_batch=None)

    with pytest.raises(ProfileError, match=r"fixed_batch=4.*its profile says.*fixed_batch=None"):
        load_model("tiny", directory, ON_CPU)


def test_a_model_whose_rows_affect_each_other_is_refused(tmp_path: Path) -> None:
    directory = write_tiny_artifact(tmp_path, model=tiny_models.batch_coupled_classifier())

    with pytest.raises(UnfitModelError) as refused:
        load_model("tiny", directory, ON_CPU)

    assert str(refused.value).startswith("the model answers an image differently in another batch")


def test_an_artifact_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError) as refused:
        load_model("tiny", tmp_path / "tiny/1", ON_CPU)

    assert str(refused.value) == (
        f"{tmp_path}/tiny/1 is not a directory; expected an artifact with manifest.json"
    )


@pytest.mark.skipif("CUDAExecutionProvider" in ort.get_available_providers(), reason="CUDA is here")
def test_asking_for_cuda_where_there_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as refused:
        load_model("tiny", write_tiny_artifact(tmp_path), RuntimeOptions(device="cuda"))

    assert str(refused.value).startswith("device 'cuda' was asked for, but ONNX Runtime offers only ")
    assert str(refused.value).endswith(
        "install inference-guard[gpu] in place of [cpu], or set device to 'cpu'"
    )
