"""The ``model.py`` that runs the graph in Triton's python backend, driven as Triton drives it.

The module that Triton gives it, ``triton_python_backend_utils``, exists within Triton alone; here is what
of it is used, in a few lines. With the real one it is tried in ``tests/e2e/test_triton_runs_the_check.py``.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from guard.detection.threshold import Policy
from guard.export.triton import TritonOptions, export_triton
from tests.artifacts import make_profile, random_images, write_tiny_artifact
from tests.reference_check import images_and_boundary
from tests.tiny_models import linear_classifier

CLEAN, SUSPICIOUS, _, BOUNDARY = images_and_boundary()


@dataclass
class Tensor:
    """As Triton's, as far as it is used."""

    name: str
    data: np.ndarray

    def as_numpy(self) -> np.ndarray:
        return self.data


@dataclass
class InferenceResponse:
    """As Triton's, as far as it is used."""

    output_tensors: list[Tensor]


Request = dict[str, np.ndarray]


@pytest.fixture(autouse=True)
def triton_utils(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("triton_python_backend_utils")
    vars(module).update(
        Tensor=Tensor,
        InferenceResponse=InferenceResponse,
        get_input_tensor_by_name=lambda request, name: Tensor(name, request[name]),
    )
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", module)


def start(directory: Path, max_batch_size: int) -> Any:
    """Load the file that was written, as Triton does."""
    spec = importlib.util.spec_from_file_location("exported_model", directory / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.TritonPythonModel()
    outputs = [{"name": name} for name in ("logits", "guard_score", "guard_verdict", "guard_p_value")]
    config = {"max_batch_size": max_batch_size, "input": [{"name": "images"}], "output": outputs}
    arguments = {"model_repository": str(directory.parent), "model_version": directory.name}
    model.initialize({"model_config": json.dumps(config), "model_instance_kind": "CPU", **arguments})
    return model


def answers(responses: list[InferenceResponse]) -> list[dict[str, np.ndarray]]:
    return [{tensor.name: tensor.data for tensor in response.output_tensors} for response in responses]


def test_requests_that_triton_batched_get_their_own_rows(tmp_path: Path) -> None:
    artifact = write_tiny_artifact(tmp_path / "models", boundary_bits=BOUNDARY)
    exported = export_triton(TritonOptions(artifact, tmp_path, policy=Policy.FLAG, backend="python"))
    model = start(exported.directory, max_batch_size=8)

    parts = [CLEAN[:2], SUSPICIOUS[:1], np.concatenate([SUSPICIOUS[1:], CLEAN[2:4]])]
    together = answers(model.execute([{"images": part} for part in parts]))
    alone = [answers(model.execute([{"images": part}]))[0] for part in parts]

    verdicts = [answer["guard_verdict"].ravel().tolist() for answer in together]
    assert verdicts == [[b"accept", b"accept"], [b"flag"], [b"flag", b"accept", b"accept"]]
    for one, other in zip(together, alone, strict=True):
        assert list(one) == ["logits", "guard_score", "guard_verdict", "guard_p_value"]
        np.testing.assert_allclose(one["logits"], other["logits"], atol=1e-5)
        np.testing.assert_allclose(one["guard_score"], other["guard_score"], atol=1e-5)
        assert one["guard_score"].shape == one["guard_verdict"].shape == (len(one["logits"]), 1)
    model.finalize()
    assert not hasattr(model, "_session")


def test_a_model_with_a_fixed_batch_gets_one_request_at_a_time(tmp_path: Path) -> None:
    net = linear_classifier(batch=2)
    artifact = write_tiny_artifact(tmp_path / "models", model=net, boundary_bits=0.0)
    exported = export_triton(TritonOptions(artifact, tmp_path, backend="python"))
    model = start(exported.directory, max_batch_size=0)
    images = random_images(make_profile(net), 4)

    answered = answers(model.execute([{"images": images[:2]}, {"images": images[2:]}]))

    assert [answer["guard_verdict"].tolist() for answer in answered] == [[[b"accept"]] * 2] * 2
    assert [answer["logits"].shape for answer in answered] == [(2, 10)] * 2
