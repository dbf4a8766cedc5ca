"""A candidate that fails, in whatever way, is told by name and does not disturb what serves."""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from artifact_edits import edit_profile, replace_file, replace_model
from control_house import House, keeping, load
from onnx import helper, numpy_helper

from guard.artifact.manifest import sha256_of
from guard.control.compatibility import differences
from guard.errors import CandidateError
from guard.runtime.loader import LoadedModel
from tests import tiny_models
from tests.artifacts import make_profile, write_tiny_artifact


@pytest.fixture
def first(tmp_path: Path) -> Path:
    write_tiny_artifact(tmp_path / "models", probed=True)
    return tmp_path / "models"


async def refusal(house: House, version: str = "2") -> str:
    """Swap to a version that fails; see that the old one serves on, and return what was said."""
    current = house.tiny.served.slot.current
    assert current is not None
    with pytest.raises(CandidateError) as refused:
        await house.keeper.swap("tiny", version, actor="ops")
    words, reason = str(refused.value), refused.value.reason
    assert house.tiny.served.slot.current is current
    assert house.tiny.served.slot.held == (current,)
    images = current.classifier._random_images(1)
    assert np.isfinite(current.classifier.logits(images)).all()
    assert house.events[-1] == (
        "candidate_failed",
        {"model": "tiny", "actor": "ops", "version": version, "serving": "1", "error": reason},
    )
    [status] = await house.keeper.status("tiny")
    [failure] = status.failures
    assert (failure.version, failure.error) == (version, reason)
    assert house.counted("guard_candidate_failures_total") == 1
    assert house.counted("guard_swaps_total", outcome="failed") == 1
    assert house.counted("guard_swaps_total", outcome="swapped") == 0
    return words


async def test_a_version_that_comes_to_serve_after_all_is_no_failure_any_more(first: Path) -> None:
    model = write_tiny_artifact(first, probed=True) / "model.onnx"
    whole = model.read_bytes()
    (write_tiny_artifact(first) / "manifest.json").unlink()
    async with keeping(first) as house:
        await house.keeper.swap("tiny", "1")
        model.write_bytes(b"half")
        with pytest.raises(CandidateError):
            await house.keeper.swap("tiny", "2")
        [before] = await house.keeper.status("tiny")
        model.write_bytes(whole)
        await house.keeper.swap("tiny", "2")
        [after] = await house.keeper.status("tiny")

    assert [failure.version for failure in before.failures] == ["3", "2"]
    assert [failure.version for failure in after.failures] == ["3"]


async def test_a_version_that_is_not_in_the_repository_is_told_once_and_is_in_no_list(first: Path) -> None:
    gone = write_tiny_artifact(first)
    (gone / "manifest.json").unlink()
    async with keeping(first) as house:
        with pytest.raises(CandidateError, match="version '99' of model 'tiny' is not in the repository"):
            await house.keeper.swap("tiny", "99")
        [mistyped] = await house.keeper.status("tiny")
        shutil.rmtree(gone)
        [cleared] = await house.keeper.status("tiny")

    assert [failure.version for failure in mistyped.failures] == ["2"]
    assert cleared.failures == ()
    assert [kind for kind, _ in house.events].count("candidate_failed") == 2


async def test_where_there_is_one_version_none_to_swap_to_is_offered(first: Path) -> None:
    async with keeping(first) as house:
        with pytest.raises(CandidateError, match=r"served before '1'; there is no other in the repository$"):
            await house.keeper.rollback("tiny")


def exploding_on_run() -> onnx.ModelProto:
    """Loads, and fails in every run: it reshapes to a size that no batch has."""
    model = tiny_models.linear_classifier()
    model.graph.node[-1].output[0] = "told"
    model.graph.initializer.append(numpy_helper.from_array(np.array([7, 77], np.int64), "shape"))
    model.graph.node.append(helper.make_node("Reshape", ["told", "shape"], ["logits"]))
    return model


def cut(directory: Path) -> None:
    data = (directory / "model.onnx").read_bytes()
    (directory / "model.onnx").write_bytes(data[: len(data) // 2])


def lose_the_manifest(directory: Path) -> None:
    (directory / "manifest.json").unlink()


def change_the_overlays(directory: Path) -> None:
    data = bytearray((directory / "overlays.npy").read_bytes())
    data[-1] ^= 1
    (directory / "overlays.npy").write_bytes(data)


def answer_otherwise(directory: Path) -> None:
    replace_model(directory, tiny_models.linear_classifier(seed=3))


def hold_no_model(directory: Path) -> None:
    replace_file(directory, "model.onnx", b"no model at all")
    digest = sha256_of((directory / "model.onnx").read_bytes())
    edit_profile(directory, lambda profile: profile.update(model_sha256=digest))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (cut, r"model\.onnx: expected SHA-256 .* got "),
        (change_the_overlays, r"overlays\.npy: expected SHA-256"),
        (lose_the_manifest, r"manifest\.json is missing"),
        (answer_otherwise, r"the model answers the stored image 0 with logits up to"),
        (hold_no_model, r"model\.onnx"),
    ],
)
async def test_a_damaged_artifact(first: Path, damage: Callable[[Path], None], said: str) -> None:
    async with keeping(first) as house:
        damage(write_tiny_artifact(first, probed=True))
        words = await refusal(house)

        [status] = await house.keeper.status("tiny")

    why = status.failures[-1].error
    assert re.search(said, why)
    assert words == f"version '2' of model 'tiny' cannot come to serve: {why}; version '1' serves on"
    for told_beside_it in ("version '2'", "'tiny'", "serve"):
        assert told_beside_it not in why


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (exploding_on_run(), "the model fails on a batch of 1 images"),
        (tiny_models.not_a_number_classifier(), "it answers clean images with NaN or infinite scores"),
        (tiny_models.batch_coupled_classifier(), "rows must not affect each other"),
    ],
)
async def test_a_model_that_explodes(first: Path, model: onnx.ModelProto, said: str) -> None:
    async with keeping(first) as house:
        write_tiny_artifact(first, model=model)
        assert said in await refusal(house)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"classes": 7}, "it has number of classes 7 in place of 10, so clients would fail; serve it under"),
        ({"shape": (3, 6, 6)}, "input shape (3, 6, 6) in place of (3, 8, 8)"),
        ({"layout": "NHWC"}, "input shape (8, 8, 3) in place of (3, 8, 8); input layout 'NHWC' in place of"),
        ({"datatype": "UINT8"}, "input datatype 'UINT8' in place of 'FP32'"),
        (
            {"softmax": True},
            "output name 'probabilities' in place of 'logits'; kind of output 'probabilities'",
        ),
    ],
)
async def test_a_model_that_clients_would_have_to_be_changed_for(
    first: Path, changes: dict[str, Any], said: str
) -> None:
    kind = "probabilities" if "softmax" in changes else "logits"
    async with keeping(first) as house:
        model = tiny_models.linear_classifier(**changes)
        write_tiny_artifact(first, model=model, classes=changes.get("classes", 10), kind=kind)
        assert said in await refusal(house)


def test_what_a_calibration_changes_is_no_difference() -> None:
    model = tiny_models.linear_classifier()
    ours, theirs = make_profile(model), make_profile(model, boundary_bits=0.9, blend="convex", rounds=(1, 1))
    assert differences(ours, theirs) == []


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError("cannot allocate"), "MemoryError: cannot allocate"),
        (OSError(5, "Input/output error"), "OSError: [Errno 5] Input/output error"),
        (ZeroDivisionError("defect\nin two lines"), "ZeroDivisionError: defect"),
        (AssertionError(), "AssertionError: "),
    ],
)
async def test_whatever_else_happens_while_loading(first: Path, error: Exception, said: str) -> None:
    def fail_on_the_second(name: str, directory: Path, approve: Any) -> LoadedModel:
        if directory.name == "2":
            raise error
        return load(name, directory, approve)

    async with keeping(first, load=fail_on_the_second) as house:
        write_tiny_artifact(first)
        assert f"cannot come to serve: {said}; version '1' serves on" in await refusal(house)


async def test_one_that_does_not_fit_into_memory_is_not_even_read(first: Path) -> None:
    read: list[str] = []

    def load_and_note(name: str, directory: Path, approve: Any) -> LoadedModel:
        read.append(directory.name)
        return load(name, directory, approve)

    async with keeping(first, load=load_and_note, free_bytes=lambda: 2**16) as house:
        write_tiny_artifact(first)
        assert "of memory to be loaded beside the model that serves, 0 MiB are free" in await refusal(house)
    assert read == ["1"]


async def test_where_the_memory_is_not_known_it_is_tried(first: Path) -> None:
    async with keeping(first, free_bytes=lambda: None) as house:
        write_tiny_artifact(first)
        assert (await house.keeper.swap("tiny")).new.version == "2"


async def test_a_failed_candidate_is_closed(first: Path) -> None:
    loaded: list[LoadedModel] = []

    def load_and_note(*arguments: Any) -> LoadedModel:
        loaded.append(load(*arguments))
        return loaded[-1]

    async with keeping(first, load=load_and_note) as house:
        write_tiny_artifact(first, model=tiny_models.not_a_number_classifier())
        await refusal(house)
        _, failed = loaded
        with pytest.raises(RuntimeError, match="closed"):
            failed.classifier.logits(failed.classifier._random_images(1))
        assert [thread.name for thread in threading.enumerate()].count("device-tiny") == 1


async def test_after_a_failure_the_next_swap_is_made(first: Path) -> None:
    async with keeping(first) as house:
        bad = write_tiny_artifact(first, probed=True)
        cut(bad)
        await refusal(house)
        write_tiny_artifact(first, boundary_bits=0.9)
        assert (await house.keeper.swap("tiny")).new.version == "3"
        assert (await house.keeper.rollback("tiny")).new.version == "1"
