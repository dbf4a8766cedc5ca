r"""The guarded graph: one ONNX model with images in, the model's answers and the guard's verdicts out.

Theory of operation. The sidecar decides, round by round, which blends it still needs. A model server
runs one fixed graph for each request, so this one computes all N blends of every image: N + 1 passes
an image, whatever it is, and in return scores that are always those over all N, which is what
boundaries are set on.

::

    images (n, …)
        Loop over parts of [the image itself, overlay 0, …, overlay N - 1], g of them at a time:
            the check graph on n · g pairs    as the sidecar runs it (guard.runtime.check_graph)
            logits (n, k), and layers' activations, kept from the part that holds the image itself, the first
            sums (s, n) += what the detector measures of the blends, float64
        value (n) = minus the score, by the sums              (guard.export.whole_detector, whole_fused)
        checked = every pixel in range, all that was measured finite                  (guard.export.judgement)
        doubtful = value < boundary,  suspicious = value < boundary for refusals
    → the model's output (n, k), guard_score (n, 1), guard_p_value (n, 1), guard_verdict (n, 1)

The loop bounds memory: a pass has n · g rows, not n · (N + 1). Overlays, weights and tables lie within its
body, in the file once. The list of N + 1 is cut into parts of one length; the last is filled up with
the image itself, of which what is measured has weight 0.

NaN never compares true, and every comparison here is so put that what is not true is not accepted:
a pixel is in range if it is above one bound and below the other, a sum is finite if it is below
a bound, and only what is checked and not suspicious has its answer let through.

As in the check graph, only operators that have meant the same since opset 9 are used.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from guard.artifact import Artifact, InputSpec, OutputSpec
from guard.detection.threshold import Policy
from guard.errors import UnfitModelError
from guard.export.judgement import BLOCK_BOUNDARY, BOUNDARY, P_VALUE, SCORE, VERDICT, add_judgement
from guard.export.overlay_loop import add_loop
from guard.export.parts import Parts
from guard.export.whole_detector import WholeDetector, WholeStrip
from guard.export.whole_fused import WholeFused
from guard.runtime.check_graph import build_check_graph
from guard.runtime.node_list import NodeList

__all__ = ["GUARD_OUTPUTS", "build_guarded_graph", "with_boundaries"]

GUARD_OUTPUTS: Final = (SCORE, VERDICT, P_VALUE)

_PREFIX = "guard_check/whole/"  # the check graph refuses models with names under guard_check/
_ELEMENT = {"FP32": TensorProto.FLOAT, "FP16": TensorProto.FLOAT16, "UINT8": TensorProto.UINT8}


def build_guarded_graph(artifact: Artifact, *, policy: Policy, overlays_per_pass: int) -> onnx.ModelProto:
    """Return a model that answers and judges; the artifact's own is left as it was.

    Its input is the model's own. Its outputs are the model's own, where under ``enforce`` the rows
    that are refused hold NaN, and, each with one value a row:

    - ``guard_score``, float32: the detector's score over all N overlays, higher is more suspicious (STRIP:
      minus the mean entropy, bits); NaN if unchecked;
    - ``guard_verdict``, string: ``accept``; ``flag`` of what is suspicious under ``flag``, and under
      ``enforce`` of what is beyond the first of two boundaries alone; ``reject`` of what is suspicious under
      ``enforce``; of what cannot be checked ``unchecked`` under ``flag``, ``reject`` under ``enforce``;
    - ``guard_p_value``, float32: the conformal p-value; NaN if unchecked.

    Args:
        artifact: Model, profile, overlays and, for the fused detector, its tables.
        policy: ``enforce`` or ``flag``.
        overlays_per_pass: Most overlays that every image is blended with at a time; a model with a
            fixed batch takes one at a time.

    Raises:
        UnfitModelError: If the model cannot be wrapped, or has a tensor named as one of our outputs.
    """
    _check_names(artifact.model)
    profile = artifact.profile
    source, sink = profile.input, profile.output
    detector = _detector_of(artifact)
    wrapped = build_check_graph(
        artifact.model,
        source=source,
        sink=sink,
        overlays=artifact.overlays,
        blend=profile.check.blend_rule,
        layers=detector.layers,
    )
    g = NodeList(_PREFIX)
    parts = Parts.of(len(artifact.overlays), 1 if profile.fixed_batch else overlays_per_pass)
    seen = add_loop(g, wrapped.graph, source, sink, detector, parts)
    value, conditions = detector.add_values(g, seen)
    answers = add_judgement(g, profile, policy, value, conditions, seen.logits)
    g.node("Cast", [answers], sink.name, to=_ELEMENT[sink.datatype])
    batch = profile.fixed_batch or "n"
    graph = helper.make_graph(g.nodes, "guarded", [_input(source, batch)], _outputs(sink, batch), g.constants)
    del wrapped.graph.node[:], wrapped.graph.initializer[:]
    wrapped.graph.CopyFrom(graph)
    return wrapped


def with_boundaries(guarded: onnx.ModelProto, boundary: float, block_boundary: float) -> onnx.ModelProto:
    """Return a copy of a guarded graph with other boundaries, on values, minus scores; for trying it."""
    moved = onnx.ModelProto()
    moved.CopyFrom(guarded)
    for name, value in ((BOUNDARY, boundary), (BLOCK_BOUNDARY, block_boundary)):
        [tensor] = [tensor for tensor in moved.graph.initializer if tensor.name == _PREFIX + name]
        tensor.CopyFrom(numpy_helper.from_array(np.array(value, np.float64), tensor.name))
    return moved


def _detector_of(artifact: Artifact) -> WholeDetector:
    profile = artifact.profile
    if profile.fused is None:
        return WholeStrip(profile.check.n_overlays)
    assert artifact.measures is not None, "a reader refuses a fused artifact without its tables"
    return WholeFused(profile.fused, artifact.measures, profile.output)


def _check_names(model: onnx.ModelProto) -> None:
    graph = model.graph
    names = {name for node in graph.node for name in (*node.input, *node.output)}
    names.update(value.name for value in graph.input)
    names.update(tensor.name for tensor in graph.initializer)
    clash = sorted(names & set(GUARD_OUTPUTS))
    if clash:
        raise UnfitModelError(
            f"the model has a tensor named {clash[0]!r}, which is the name of an output of the guard; "
            f"rename it and calibrate the model again"
        )


def _input(source: InputSpec, batch: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(source.name, _ELEMENT[source.datatype], [batch, *source.shape])


def _outputs(sink: OutputSpec, batch: int | str) -> list[onnx.ValueInfoProto]:
    return [
        helper.make_tensor_value_info(sink.name, _ELEMENT[sink.datatype], [batch, sink.classes]),
        helper.make_tensor_value_info(SCORE, TensorProto.FLOAT, [batch, 1]),
        helper.make_tensor_value_info(VERDICT, TensorProto.STRING, [batch, 1]),
        helper.make_tensor_value_info(P_VALUE, TensorProto.FLOAT, [batch, 1]),
    ]
