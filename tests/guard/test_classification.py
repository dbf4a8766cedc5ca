"""The classification extension: what Triton answers, value:index[:label], highest first."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from guard.artifact import OutputSpec
from guard.dataplane.classification import classification
from guard.dataplane.validation import accepted_images
from guard.errors import InvalidRequestError
from guard.messages import InferRequest, Tensor
from guard.rpc.pb import open_inference_pb2 as pb
from tests.artifacts import make_profile, write_tiny_artifact
from tests.serving import infer_request, serving
from tests.tiny_models import linear_classifier, linear_weights

NAMES = tuple(f"name {index}" for index in range(10))


def elements_of(raw: bytes) -> list[bytes]:
    elements = []
    while raw:
        end = 4 + int.from_bytes(raw[:4], "little")
        elements.append(raw[4:end])
        raw = raw[end:]
    return elements


def asked(images: np.ndarray, classes: int, *names: str) -> pb.ModelInferRequest:
    request = infer_request(images)
    for name in names or ("logits",):
        output = request.outputs.add(name=name)
        if not name.startswith("guard_"):
            output.parameters["classification"].int64_param = classes
    return request


@settings(max_examples=60)
@given(
    hnp.arrays(np.float32, (3, 5), elements=st.floats(-100, 100, width=32)),
    st.integers(1, 8),
    st.booleans(),
)
def test_the_highest_classes_come_first_and_name_themselves(
    logits: np.ndarray, count: int, named: bool
) -> None:
    labels = NAMES[:5] if named else None
    sink = OutputSpec(name="y", datatype="FP32", classes=5, kind="logits", labels=labels)

    tensor = classification(sink, logits, count)

    assert (tensor.name, tensor.datatype, tensor.data.shape) == ("y", "BYTES", (3, min(count, 5)))
    for row, elements in zip(logits, tensor.data.tolist(), strict=True):
        parts = [element.decode().split(":") for element in elements]
        indices = [int(part[1]) for part in parts]
        assert indices == sorted(range(5), key=lambda index: (-row[index], index))[:count]
        assert [part[0] for part in parts] == ["%.6f" % row[index] for index in indices]  # noqa: UP031  as C
        assert [part[2:] for part in parts] == [[NAMES[index]] if named else [] for index in indices]


@pytest.mark.parametrize("labels", [None, NAMES], ids=["indices", "labels"])
async def test_a_client_gets_classes_in_place_of_logits_and_the_findings_beside(
    tmp_path: Path, labels: tuple[str, ...] | None
) -> None:
    write_tiny_artifact(tmp_path, labels=labels)
    images = np.random.default_rng(3).uniform(0, 1, (2, 3, 8, 8)).astype(np.float32)

    async with serving(tmp_path, policy="flag") as client:
        answer = await client.infer(asked(images, 3, "guard_verdict", "logits"))
        metadata = await client.stub.ServerMetadata(pb.ServerMetadataRequest())

    weight, bias = linear_weights()
    logits = images.reshape(2, -1) @ weight + bias
    output = answer.outputs[1]
    assert [one.name for one in answer.outputs] == ["guard_verdict", "logits"]
    assert (output.datatype, list(output.shape)) == ("BYTES", [2, 3])
    got = [element.decode().split(":") for element in elements_of(answer.raw_output_contents[1])]
    highest = np.argsort(-logits, axis=1)[:, :3].ravel()
    assert [int(parts[1]) for parts in got] == highest.tolist()
    assert [parts[2:] for parts in got] == [[labels[index]] if labels else [] for index in highest]
    values = np.array([float(parts[0]) for parts in got])
    np.testing.assert_allclose(
        values, np.take_along_axis(logits, highest.reshape(2, 3), 1).ravel(), atol=1e-4
    )
    assert "classification" in metadata.extensions


async def test_findings_are_not_classified(tmp_path: Path) -> None:
    directory = write_tiny_artifact(tmp_path)
    assert directory.is_dir()
    request = infer_request(np.zeros((1, 3, 8, 8), np.float32))
    request.outputs.add(name="guard_score").parameters["classification"].int64_param = 1

    async with serving(tmp_path) as client:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await client.infer(request)

    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.value.details() == (
        "output 'guard_score' holds no class scores, so 'classification' cannot be asked of it; leave it out"
    )


@pytest.mark.parametrize(("asked_for", "rows"), [(257, 64), (2**63 - 1, 40)])
def test_more_words_than_the_event_loop_has_time_for_are_refused(asked_for: int, rows: int) -> None:
    profile = make_profile(linear_classifier())
    sink = profile.output.model_copy(update={"classes": 500})
    profile = profile.model_copy(update={"output": sink})
    tensor = Tensor("images", "FP32", np.zeros((rows, 3, 8, 8), np.float32))
    request = InferRequest(
        "tiny", (tensor,), outputs=(sink.name,), classifications={sink.name: 16_384 // rows}
    )
    too_many = replace(request, classifications={sink.name: asked_for})

    assert len(accepted_images(request, profile, 64)) == rows
    with pytest.raises(InvalidRequestError, match=r"words, expected at most 16384; ask for fewer classes"):
        accepted_images(too_many, profile, 64)


def test_labels_must_name_every_class() -> None:
    with pytest.raises(ValueError, match="labels must name 10 classes, got 2"):
        OutputSpec(name="y", datatype="FP32", classes=10, kind="logits", labels=("a", "b"))
