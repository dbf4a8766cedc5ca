"""The golden probe: kept with the artifact, asked on loading, and loud where the answers are others."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from artifact_edits import replace_file, replace_model

from guard.artifact import Probe, read_artifact, write_artifact
from guard.artifact.probe import probe_bytes
from guard.cli import main
from guard.detection.strip import mean_entropies
from guard.errors import ArtifactError, HashMismatchError, ProbeError, ProfileError, UnsafeArrayError
from guard.runtime.loader import RuntimeOptions, load_model
from guard.runtime.onnx_classifier import OnnxClassifier
from guard.runtime.probing import FLOOR, TOLERANCE, check_probe, take_probe
from tests.artifacts import make_profile, random_images, write_tiny_artifact
from tests.tiny_models import linear_classifier, not_a_number_classifier

ON_CPU = RuntimeOptions(device="cpu", threads=1, max_batch_pairs=16)
CLASSES, N = 10, 8


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    return write_tiny_artifact(tmp_path, probed=True)


@pytest.fixture
def classifier(artifact: Path) -> Iterator[OnnxClassifier]:
    model = load_model("tiny", artifact, ON_CPU)
    yield model.classifier
    model.close()


def stored(artifact: Path) -> Probe:
    probe = read_artifact(artifact).probe
    assert probe is not None
    return probe


def put(artifact: Path, **arrays: np.ndarray) -> None:
    """Store these arrays instead, with the right hash."""
    buffer = io.BytesIO()
    probe = stored(artifact)
    np.savez(buffer, **{**vars(probe), **arrays})
    replace_file(artifact, "probe.npz", buffer.getvalue())


def test_it_is_read_as_it_was_written_and_its_bytes_depend_on_nothing_else(artifact: Path) -> None:
    probe = stored(artifact)

    assert (probe.images.shape, probe.logits.shape, probe.mean_entropy_bits.shape) == (
        *((3, 3, 8, 8), (3, CLASSES), (3,)),
    )
    assert probe_bytes(probe) == (artifact / "probe.npz").read_bytes()


def test_an_artifact_without_one_is_read_and_loaded(tmp_path: Path) -> None:
    directory = write_tiny_artifact(tmp_path)
    model = load_model("tiny", directory, ON_CPU)
    model.close()

    assert (read_artifact(directory).probe, model.probed) == (None, False)


def test_it_holds_what_the_check_gives_over_all_overlays(artifact: Path, classifier: OnnxClassifier) -> None:
    probe = stored(artifact)
    for index in range(3):
        image = probe.images[index : index + 1]
        np.testing.assert_allclose(probe.logits[index], classifier.logits(image)[0], rtol=1e-5)
        pairs = np.zeros(N, np.int64), np.arange(N, dtype=np.int64)
        entropies = classifier.check(image, *pairs)[1]
        assert probe.mean_entropy_bits[index] == pytest.approx(mean_entropies(entropies[None])[0], abs=1e-5)


@pytest.mark.parametrize("max_pairs", [1, 7, 100])
def test_it_does_not_depend_on_how_it_is_batched(
    artifact: Path, classifier: OnnxClassifier, max_pairs: int
) -> None:
    probe = stored(artifact)
    again = take_probe(classifier, probe.images, N, max_pairs=max_pairs)
    np.testing.assert_allclose(again.mean_entropy_bits, probe.mean_entropy_bits, atol=1e-5)


def test_answers_within_the_tolerance_pass_and_beyond_it_do_not(
    artifact: Path, classifier: OnnxClassifier
) -> None:
    probe = stored(artifact)
    row, column = np.unravel_index(np.abs(probe.logits).argmin(), probe.logits.shape)
    allowed = FLOOR + TOLERANCE * float(np.abs(probe.logits).max())
    for share, passes in ((0.5, True), (1.5, False)):
        logits = probe.logits.copy()
        logits[row, column] += share * allowed
        if passes:
            check_probe(classifier, replace(probe, logits=logits), N, max_pairs=16, where="here")
            continue
        with pytest.raises(ProbeError, match=rf"here: .* stored image {row} with logits up to .* at most"):
            check_probe(classifier, replace(probe, logits=logits), N, max_pairs=16, where="here")


def test_entropies_are_compared_too(artifact: Path, classifier: OnnxClassifier) -> None:
    probe = stored(artifact)
    allowed = FLOOR + TOLERANCE * float(np.log2(CLASSES))
    near, far = (probe.mean_entropy_bits + share * allowed for share in (0.5, 1.5))

    check_probe(classifier, replace(probe, mean_entropy_bits=near), N, max_pairs=16, where="here")
    with pytest.raises(ProbeError, match=r"stored image 0 with mean entropies up to"):
        check_probe(classifier, replace(probe, mean_entropy_bits=far), N, max_pairs=16, where="here")


class Answering:
    """Gives these logits, and no entropy at all."""

    def __init__(self, logits: np.ndarray) -> None:
        self._logits = logits

    def check(
        self, images: np.ndarray, image_index: np.ndarray, overlay_index: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        return self._logits[image_index], np.zeros(len(image_index), np.float32)


def test_a_class_may_change_only_where_the_margin_was_within_the_tolerance() -> None:
    allowed = FLOOR + TOLERANCE * 10.0
    images, nothing = np.zeros((1, 1, 1, 1), np.float32), np.zeros(1)
    now = Answering(np.array([[9.89, 9.9]], np.float32))

    for margin, passes in ((0.9 * allowed, True), (1.1 * allowed, False)):
        probe = Probe(images, np.array([[10.0, 10.0 - margin]], np.float32), nothing)
        if passes:
            check_probe(now, probe, 2, max_pairs=4, where="here")
            continue
        # Each logit alone is near enough.
        with pytest.raises(ProbeError, match=r"stored image 0 into class 1, at calibration into 0"):
            check_probe(now, probe, 2, max_pairs=4, where="here")


def test_answers_that_are_not_numbers_never_pass() -> None:
    probe = Probe(np.zeros((1, 1, 1, 1), np.float32), np.array([[1.0, 2.0]], np.float32), np.zeros(1))
    with pytest.raises(ProbeError, match=r"logits up to nan off"):
        check_probe(Answering(np.full((1, 2), np.nan, np.float32)), probe, 2, max_pairs=4, where="here")


@pytest.mark.parametrize("other", [linear_classifier(seed=1), not_a_number_classifier()])
def test_another_model_under_the_right_hashes_does_not_load(artifact: Path, other: object) -> None:
    replace_model(artifact, other)  # type: ignore[arg-type]
    with pytest.raises(ProbeError, match=r"1: the model answers the stored image 0 with logits up to"):
        load_model("tiny", artifact, ON_CPU)


def test_a_changed_probe_has_another_hash(artifact: Path) -> None:
    data = bytearray((artifact / "probe.npz").read_bytes())
    data[-1] ^= 1
    (artifact / "probe.npz").write_bytes(data)
    with pytest.raises(HashMismatchError, match=r"probe\.npz"):
        read_artifact(artifact)


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("images", np.zeros((0, 3, 8, 8), np.float32)),
        ("images", np.zeros((3, 3, 8, 8), np.float64)),
        ("images", np.float32(0.0)),
        ("logits", np.zeros((3, 9), np.float32)),
        ("logits", np.zeros((2, 10), np.float32)),
        ("logits", np.full((3, 10), np.inf, np.float32)),
        ("mean_entropy_bits", np.zeros(3, np.float32)),
        ("mean_entropy_bits", np.full(3, np.nan)),
        ("surplus", np.zeros(3)),
    ],
)
def test_a_probe_that_does_not_fit_is_refused(artifact: Path, name: str, array: np.ndarray) -> None:
    put(artifact, **{name: array})
    with pytest.raises(ProfileError, match=r"probe\.npz.*calibrate again"):
        read_artifact(artifact)


def test_pickled_objects_are_refused_and_never_run(artifact: Path, tmp_path: Path) -> None:
    put(artifact, logits=np.array([Path(tmp_path)], object))
    with pytest.raises(UnsafeArrayError, match=r"probe\.npz is no plain \.npz archive .* pickled"):
        read_artifact(artifact)


@pytest.mark.parametrize("kept", [0, 3, 100, -5])
def test_truncated_probes_are_refused(artifact: Path, kept: int) -> None:
    replace_file(artifact, "probe.npz", (artifact / "probe.npz").read_bytes()[:kept])
    with pytest.raises(ArtifactError, match=r"probe\.npz is (not a readable|no plain) \.npz archive"):
        read_artifact(artifact)


def test_a_single_array_in_place_of_the_archive_is_refused(artifact: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    replace_file(artifact, "probe.npz", buffer.getvalue())
    with pytest.raises(ArtifactError, match=r"probe\.npz is a single \.npy array, expected an \.npz archive"):
        read_artifact(artifact)


def test_no_extra_file_may_take_its_name(tmp_path: Path) -> None:
    model = linear_classifier()
    profile = make_profile(model)
    with pytest.raises(ArtifactError, match=r"extra_files holds probe\.npz"):
        write_artifact(
            tmp_path / "tiny",
            model=model.SerializeToString(),
            overlays=random_images(profile, N),
            profile=profile,
            extra_files={"probe.npz": b""},
        )


@pytest.mark.parametrize(("probed", "said"), [(True, "probe     passed"), (False, "probe     none")])
def test_verify_says_whether_there_is_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], probed: bool, said: str
) -> None:
    assert main(["verify", str(write_tiny_artifact(tmp_path, probed=probed))]) == 0
    assert said in capsys.readouterr().out


def test_verify_fails_where_the_answers_are_others(
    artifact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    replace_model(artifact, linear_classifier(seed=1))
    assert main(["verify", str(artifact)]) == 2
    assert "the model answers the stored image 0 with logits up to" in capsys.readouterr().err


def test_a_probe_that_takes_more_memory_than_its_file_is_refused_unread(artifact: Path) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{**vars(stored(artifact)), "images": np.zeros((10_000, 100), np.float32)})
    replace_file(artifact, "probe.npz", buffer.getvalue())

    with pytest.raises(
        ArtifactError, match=r"probe.npz has \d+ bytes and 4\d{6} once unpacked, expected an "
    ):
        read_artifact(artifact)
