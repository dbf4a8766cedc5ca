"""The guarded graph in ONNX Runtime, for tests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

from guard.artifact import Artifact, Profile
from guard.detection.measurements import Measures
from guard.detection.threshold import Policy
from guard.export.guarded_graph import build_guarded_graph
from tests.guard.check_reference import overlays_of


@dataclass(frozen=True)
class Answer:
    """What the guarded graph said, one row an image."""

    outputs: np.ndarray
    scores: np.ndarray
    verdicts: list[str]
    p_values: np.ndarray


class Guarded:
    """A guarded graph, loaded."""

    def __init__(self, graph: onnx.ModelProto) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(
            graph.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, images: np.ndarray) -> Answer:
        outputs, scores, verdicts, p_values = self.session.run(
            None, {self.session.get_inputs()[0].name: images}
        )
        assert scores.shape == verdicts.shape == p_values.shape == (len(images), 1)
        assert scores.dtype == p_values.dtype == np.float32
        return Answer(outputs, scores[:, 0], verdicts[:, 0].tolist(), p_values[:, 0])


def guarded(
    model: onnx.ModelProto,
    profile: Profile,
    policy: Policy = Policy.FLAG,
    overlays_per_pass: int = 4,
    measures: Measures | None = None,
) -> onnx.ModelProto:
    """Return the graph of a model that is on no disk."""
    artifact = Artifact(Path("tiny", "1"), "1", "", model, overlays_of(profile), profile, None, measures)
    return build_guarded_graph(artifact, policy=policy, overlays_per_pass=overlays_per_pass)
