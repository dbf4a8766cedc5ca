"""What ``guard export triton`` writes, served by the real Triton and asked by its own client."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from guard.detection.threshold import Policy
from guard.export.triton import TritonOptions, export_triton
from guard.runtime.score_shift import full_scores
from tests.artifacts import make_profile, random_images, write_tiny_artifact
from tests.e2e.triton_process import Triton, environment
from tests.guard.check_reference import bare_outputs, open_classifier
from tests.guard.fused_subjects import detector_of, fitted, write_fused_artifact
from tests.guard.guarded_model import Guarded
from tests.reference_check import images_and_boundary, linear_logits
from tests.tiny_models import linear_classifier

pytestmark = pytest.mark.peer

CALLS = Path(__file__).with_name("triton_check_calls.py")
CLEAN, SUSPICIOUS, MEANS, BOUNDARY = images_and_boundary()
BYTE_MODEL = linear_classifier((3, 6, 7), layout="NHWC", datatype="UINT8", batch=4, softmax=True, gain=0.3)
FUSED_MODEL = linear_classifier((3, 6, 7), gain=0.3)


@dataclass(frozen=True)
class House:
    """A Triton with our exports."""

    triton: Triton
    versions: dict[str, Path]

    def ask(self, model: str, requests: list[np.ndarray], folder: Path) -> Any:
        path = folder / "requests.npz"
        np.savez(path, **{f"r{number:03}": images for number, images in enumerate(requests)})
        argv = [str(self.triton.python), str(CALLS), self.triton.address, model, str(path)]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("triton")
    tiny = write_tiny_artifact(folder / "models", boundary_bits=BOUNDARY)
    bytes_ = write_tiny_artifact(folder / "models", "bytes", model=BYTE_MODEL, kind="probabilities")
    fused = write_fused_artifact(folder / "models", FUSED_MODEL, boundaries=fused_boundaries())
    triton = Triton(environment(), folder / "triton", "tiny", ("flagging", "bytes", "fused"))
    out = triton.repository
    exports = {
        "tiny": TritonOptions(tiny, out, backend="python"),
        "flagging": TritonOptions(tiny, out, name="flagging", policy=Policy.FLAG, backend="python"),
        "bytes": TritonOptions(bytes_, out, policy=Policy.FLAG, backend="python"),
        "fused": TritonOptions(fused, out, backend="python"),
    }
    versions = {name: export_triton(options).directory for name, options in exports.items()}
    triton.start()
    yield House(triton, versions)
    triton.kill()


def fused_images() -> np.ndarray:
    return random_images(fitted(FUSED_MODEL)[0], 9)


def fused_scores() -> np.ndarray:
    """Return the scores by what serves."""
    profile, measures = fitted(FUSED_MODEL)
    with open_classifier(FUSED_MODEL, profile) as classifier:
        return full_scores(classifier, detector_of(profile, measures), fused_images(), max_pairs=64)


def fused_boundaries() -> tuple[float, float]:
    """Return boundaries that three of the images each are below, between and above."""
    scores = np.sort(fused_scores())
    return float(scores[2:4].mean()), float(scores[5:7].mean())


def parts() -> list[np.ndarray]:
    """Return requests of one to three rows: clean, suspicious, and one that cannot be checked."""
    broken = CLEAN[:1].copy()
    broken[0, 1, 2, 3] = np.nan
    return [
        *(CLEAN[i : i + 1] for i in range(6)),
        SUSPICIOUS,
        np.concatenate([CLEAN[:1], broken, SUSPICIOUS[:1]]),
    ]


def test_triton_gives_answers_and_verdicts_and_withholds_what_is_rejected(
    house: House, tmp_path: Path
) -> None:
    seen = house.ask("tiny", parts(), tmp_path)

    assert (seen["ready"], seen["batching"]) == (True, True)
    outputs = {
        tensor["name"]: (tensor["datatype"], tensor["shape"]) for tensor in seen["metadata"]["outputs"]
    }
    assert outputs == {
        "logits": ("FP32", ["-1", "10"]),
        "guard_score": ("FP32", ["-1", "1"]),
        "guard_verdict": ("BYTES", ["-1", "1"]),
        "guard_p_value": ("FP32", ["-1", "1"]),
    }
    verdicts = [answer["verdicts"] for answer in seen["answers"]]
    assert verdicts == [["accept"]] * 6 + [["reject", "reject"], ["accept", "reject", "reject"]]
    for images, answer in zip(parts(), seen["answers"], strict=True):
        expected = linear_logits(images)
        expected[np.array(answer["verdicts"]) != "accept"] = np.nan
        np.testing.assert_allclose(answer["outputs"], expected, atol=1e-4)
    scores = np.concatenate([answer["guard_score"] for answer in seen["answers"]])
    order = [*range(6), 6, 7, 0, -1, 6]  # rows of MEANS; -1 for the row that cannot be checked
    np.testing.assert_allclose(scores, [np.nan if row < 0 else -MEANS[row] for row in order], atol=1e-4)


def test_a_client_that_asks_for_the_answer_alone_gets_none_for_what_is_rejected(
    house: House, tmp_path: Path
) -> None:
    alone = np.array(house.ask("tiny", parts(), tmp_path)["alone"])

    assert np.isnan(alone).all(axis=1).tolist() == [False, True, True]


def test_under_flag_triton_answers_and_says_what_is_suspicious(house: House, tmp_path: Path) -> None:
    seen = house.ask("flagging", parts(), tmp_path)

    assert seen["answers"][-1]["verdicts"] == ["accept", "unchecked", "flag"]
    np.testing.assert_allclose(seen["answers"][-2]["outputs"], linear_logits(SUSPICIOUS), atol=1e-4)


def test_a_model_of_bytes_with_a_fixed_batch_says_in_triton_what_it_says_here(
    house: House, tmp_path: Path
) -> None:
    requests = [random_images(make_profile(BYTE_MODEL, kind="probabilities"), 4, seed) for seed in range(3)]

    seen = house.ask("bytes", requests, tmp_path)

    assert seen["metadata"]["inputs"] == [
        {"name": "images", "datatype": "UINT8", "shape": ["4", "6", "7", "3"]}
    ]
    assert seen["batching"] is False
    here = Guarded(onnx.load(house.versions["bytes"] / "model.onnx"))
    for images, answer in zip(requests, seen["answers"], strict=True):
        expected = here(images)
        assert answer["verdicts"] == expected.verdicts
        np.testing.assert_allclose(answer["outputs"], expected.outputs, atol=1e-5)
        np.testing.assert_allclose(answer["guard_score"], expected.scores, atol=1e-5)
        np.testing.assert_allclose(answer["guard_p_value"], expected.p_values, atol=1e-6)


def test_the_fused_detector_with_two_boundaries_says_in_triton_what_the_guard_says(
    house: House, tmp_path: Path
) -> None:
    images, scores, (low, high) = fused_images(), fused_scores(), fused_boundaries()
    broken = images[:1].copy()
    broken[0, 0, 0, 0] = np.nan

    answers = house.ask("fused", [images[:1], images[1:5], images[5:], broken], tmp_path)["answers"]

    verdicts = [word for answer in answers for word in answer["verdicts"]]
    expected = ["accept" if score < low else "flag" if score < high else "reject" for score in scores]
    assert verdicts == [*expected, "reject"]
    assert sorted(expected) == ["accept"] * 3 + ["flag"] * 3 + ["reject"] * 3
    said = np.concatenate([answer["guard_score"] for answer in answers])
    np.testing.assert_allclose(said, [*scores, np.nan], atol=1e-4)
    outputs = np.concatenate([answer["outputs"] for answer in answers])
    refused = np.array(verdicts) == "reject"
    assert np.isnan(outputs).all(axis=1).tolist() == refused.tolist()
    bare = bare_outputs(FUSED_MODEL, images, None)
    np.testing.assert_allclose(outputs[:-1][~refused[:-1]], bare[~refused[:-1]], atol=1e-4)
